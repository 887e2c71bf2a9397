use super::{Threads, available, product};
use crate::{
    matrix::{Matrix, MatrixMut, Write},
    testing::{cast, normals},
};

/// Rows, summed dimension and columns: full and partial tiles, one and several blocks and groups.
const SIZES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [1, 700, 1],
    [14, 16, 32],
    [15, 17, 33],
    [28, 320, 64],
    [13, 321, 31],
    [113, 48, 100],
    [64, 33, 256],
    [3, 1000, 47],
    [230, 5, 17],
    [2, 641, 3500],
    [5, 9000, 130],
];

/// Both given one row after the other, whatever the layout they are multiplied in.
fn naive(a: &[f32], b: &[f32], [rows, depth, columns]: [usize; 3]) -> Vec<f64> {
    let mut product = vec![0.0; rows * columns];
    for row in 0..rows {
        for p in 0..depth {
            let a = f64::from(a[row * depth + p]);
            for (sum, &b) in product[row * columns..][..columns]
                .iter_mut()
                .zip(&b[p * columns..])
            {
                *sum += a * f64::from(b);
            }
        }
    }
    product
}

fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|column| matrix.iter().skip(column).step_by(columns).copied())
        .collect()
}

#[test]
fn products_of_any_size_and_layout() {
    if !available() {
        println!("skipped: no AVX-512 on this processor");
        return;
    }
    for [rows, depth, columns] in SIZES {
        let (a, b) = (
            cast::<f32>(&normals("a", rows * depth)),
            cast::<f32>(&normals("b", depth * columns)),
        );
        let start = cast::<f32>(&normals("c", rows * columns));
        let exact = naive(&a, &b, [rows, depth, columns]);
        let (a_across, b_across) = (transposed(&a, depth), transposed(&b, columns));
        for (left_across, right_across) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let left = if left_across {
                Matrix::new(&a_across, depth, rows).transposed()
            } else {
                Matrix::new(&a, rows, depth)
            };
            let right = if right_across {
                Matrix::new(&b_across, columns, depth).transposed()
            } else {
                Matrix::new(&b, depth, columns)
            };
            for write in [Write::Replace, Write::Add] {
                let run = |threads| {
                    let mut c = start.clone();
                    product(
                        &mut MatrixMut::new(&mut c, rows, columns),
                        write,
                        0.5,
                        left,
                        right,
                        threads,
                    );
                    c
                };
                let found = run(Threads::One);
                assert_eq!(found, run(Threads::All), "{rows} x {depth} x {columns}");
                let bound = 4e-7 * (depth as f64).sqrt() + 1e-6;
                for (index, (found, exact)) in found.iter().zip(&exact).enumerate() {
                    let before = if write == Write::Add {
                        f64::from(start[index])
                    } else {
                        0.0
                    };
                    let error = (f64::from(*found) - (before + 0.5 * exact)).abs();
                    assert!(
                        error < bound * 4.0,
                        "{rows} x {depth} x {columns}, element {index}: off by {error:e}"
                    );
                }
            }
        }
    }
}
