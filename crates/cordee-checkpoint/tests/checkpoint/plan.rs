//! The plan: covers exactly, balances, agrees with itself, and is quick at a thousand ranks.

use std::time::{Duration, Instant};

use crate::fixture::spec;
use cordee_checkpoint::{Dtype, Piece, Plan, TensorSpec};
use proptest::prelude::*;

fn specs() -> impl Strategy<Value = Vec<TensorSpec>> {
    let dtype = prop::sample::select(vec![Dtype::U8, Dtype::BF16, Dtype::F32, Dtype::F64]);
    let shape = prop_oneof![
        prop::collection::vec(0_usize..40, 0..4),
        (1_usize..3000, 1_usize..3000).prop_map(|(rows, columns)| vec![rows, columns]),
    ];
    prop::collection::vec((dtype, shape), 0..40).prop_map(|tensors| {
        (tensors.into_iter().enumerate())
            .map(|(index, (dtype, shape))| spec(&format!("t{index}"), dtype, &shape))
            .collect()
    })
}

proptest! {
    #[test]
    fn every_element_has_one_writer_and_no_writer_has_too_much(tensors in specs(), writers in 1_usize..70) {
        let plan = Plan::new(&tensors, writers).unwrap();

        // Exact cover, by another way than the code's: sort all pieces and chain them.
        for (index, tensor) in tensors.iter().enumerate() {
            let mut pieces: Vec<_> = plan.pieces().iter().filter(|piece| piece.tensor == index).collect();
            pieces.sort_by_key(|piece| piece.start);
            let mut next = 0;
            for piece in &pieces {
                prop_assert_eq!(piece.start, next);
                prop_assert!(piece.len > 0 && piece.writer < writers);
                prop_assert_eq!(piece.start % 64, 0);
                next += piece.len;
            }
            prop_assert_eq!(next, tensor.elements());
            if tensor.bytes() <= 64 * 1024 {
                prop_assert!(pieces.len() <= 1, "a small tensor is split");
            }
        }

        let total: u64 = tensors.iter().map(TensorSpec::bytes).sum();
        let bound = total.div_ceil(writers as u64) + 64 * 1024;
        let mut sum = 0;
        for writer in 0..writers {
            prop_assert!(plan.bytes_of(writer) <= bound, "writer {} has {}", writer, plan.bytes_of(writer));
            sum += plan.bytes_of(writer);
        }
        prop_assert_eq!(sum, total);
        // Splits only to balance: at most one more piece than tensors for each writer, and for the
        // slack of each.
        prop_assert!(plan.pieces().len() <= tensors.len() + 2 * writers);

        let again = Plan::new(&tensors, writers).unwrap();
        prop_assert_eq!(again.hash(), plan.hash());
        prop_assert_eq!(&again, &plan);
        prop_assert_eq!(Plan::from_pieces(&tensors, writers, plan.pieces().to_vec()).unwrap(), plan);
    }

    /// Whatever is done to one piece, the plan no longer covers exactly.
    #[test]
    fn a_wrong_piece_is_refused(which in 0_usize..100, change in 0_usize..6, by in 1_u64..1000) {
        let tensors = [spec("a", Dtype::F32, &[300, 300]), spec("b", Dtype::BF16, &[5]), spec("c", Dtype::F32, &[0])];
        let mut pieces = Plan::new(&tensors, 3).unwrap().pieces().to_vec();
        let which = which % pieces.len();
        match change {
            0 => pieces[which].start += by,
            1 => pieces[which].len += by,
            2 => pieces[which].len = pieces[which].len.saturating_sub(by),
            3 => pieces[which].writer += 3,
            4 => pieces[which].tensor += 2 + by as usize,
            _ => drop(pieces.remove(which)),
        }
        prop_assert!(Plan::from_pieces(&tensors, 3, pieces).is_err());
    }
}

#[test]
fn more_writers_than_elements_leaves_some_without_work() {
    let plan = Plan::new(
        &[
            spec("scalar", Dtype::F32, &[]),
            spec("pair", Dtype::U8, &[2]),
        ],
        100,
    )
    .unwrap();
    assert_eq!(
        (0..100).filter(|&writer| plan.bytes_of(writer) > 0).count(),
        2
    );
    assert!(Plan::new(&[], 4).unwrap().pieces().is_empty());
}

#[test]
fn whole_tensors_where_they_fit() {
    let tensors: Vec<_> = (0..8)
        .map(|index| spec(&format!("t{index}"), Dtype::F32, &[512, 512]))
        .collect();
    let plan = Plan::new(&tensors, 4).unwrap();
    assert_eq!(plan.pieces().len(), 8);
    assert!((0..4).all(|writer| plan.bytes_of(writer) == 2 << 20));
}

#[test]
fn the_hash_tells_plans_apart() {
    let base = [spec("a", Dtype::F32, &[6, 4])];
    let hash = |tensors: &[TensorSpec], writers| Plan::new(tensors, writers).unwrap().hash();
    let others = [
        hash(&[spec("b", Dtype::F32, &[6, 4])], 2),
        hash(&[spec("a", Dtype::I32, &[6, 4])], 2),
        hash(&[spec("a", Dtype::F32, &[4, 6])], 2),
        hash(&base, 3),
    ];
    assert!(
        others.iter().all(|other| *other != hash(&base, 2)),
        "{others:?}"
    );
}

#[test]
fn what_cannot_be_stored_is_named() {
    let refuse =
        |tensors: &[TensorSpec], writers| Plan::new(tensors, writers).unwrap_err().to_string();
    assert!(refuse(&[], 0).contains("no writers"));
    for (name, dtype, shape, words) in [
        ("", Dtype::F32, vec![1], "no name"),
        ("__metadata__", Dtype::F32, vec![1], "keeps this name"),
        ("a@0", Dtype::F32, vec![1], "`@` separates"),
        ("a", Dtype::F4, vec![2], "whole bytes"),
        ("a", Dtype::F32, vec![usize::MAX, 2], "overflows"),
        ("a", Dtype::U8, vec![usize::MAX], "overflows"),
    ] {
        let error = refuse(&[spec(name, dtype, &shape)], 1);
        assert!(error.contains(words), "{error}");
    }
    let twins = [spec("a", Dtype::F32, &[1]), spec("a", Dtype::F32, &[2])];
    assert!(refuse(&twins, 1).contains("two of this name"));
    let half = spec("a", Dtype::U8, &[1 << 62]);
    let other = TensorSpec {
        name: "b".to_owned(),
        ..half.clone()
    };
    assert!(refuse(&[half, other], 1).contains("overflow"));
    let outside = Piece {
        tensor: 7,
        start: 0,
        len: 1,
        writer: 0,
    };
    assert!(Plan::from_pieces(&[], 1, vec![outside]).is_err());
}

#[test]
fn a_thousand_writers_of_a_thousand_tensors_are_planned_at_once() {
    let tensors: Vec<_> = (0..1000)
        .map(|index| match index % 3 {
            0 => spec(&format!("layers.{index}.norm"), Dtype::F32, &[8192]),
            1 => spec(
                &format!("layers.{index}.attention"),
                Dtype::F32,
                &[8192, 8192],
            ),
            _ => spec(&format!("layers.{index}.ffn"), Dtype::F32, &[28_672, 8192]),
        })
        .collect();
    let timed = (0..5).map(|_| {
        let begun = Instant::now();
        let plan = Plan::new(&tensors, 1024).unwrap();
        let took = begun.elapsed();
        assert!(plan.pieces().len() <= 1000 + 2 * 1024);
        took
    });
    let took = timed.min().unwrap();
    // The goal is 50 ms; four times that in a build that is not optimised, on a busy machine.
    let limit = Duration::from_millis(if cfg!(debug_assertions) { 200 } else { 50 });
    assert!(took <= limit, "{took:?}");
}
