//! Every case of `cordee_comm::conformance`: sums to the bit as ranks of one machine have them.

use cordee_comm::{
    ProcessGroup,
    conformance::{Setting, cases},
};
use cordee_memory::{Buffer, DType};

use crate::job::{PATIENCE, ranks, seats};

fn run(sizes: &[usize]) {
    // One connection for all cases: what is left of one would disturb the next.
    ranks(seats(sizes), |rank, seat| {
        let mut group = seat.join(PATIENCE).unwrap();
        assert_eq!(
            (group.rank(), group.world_size()),
            (rank, sizes.iter().sum())
        );
        for case in cases() {
            let wrong = case.run(&mut group, &Setting::HOST).unwrap();
            assert_eq!(wrong, None, "{case:?}");
        }
    });
    println!("{} cases on machines of {sizes:?} ranks", cases().len());
}

#[test]
fn two_machines_with_a_rank_each() {
    run(&[1, 1]);
}

#[test]
fn two_machines_with_two_ranks_each() {
    run(&[2, 2]);
}

#[test]
fn three_machines_with_a_rank_each() {
    run(&[1, 1, 1]);
}

#[test]
fn machines_of_different_sizes() {
    run(&[2, 3, 1]);
    run(&[1, 4]);
}

#[test]
fn one_machine_is_none_too_few() {
    run(&[3]);
}

/// More pieces than are ever on their way, in both kinds of memory, and a range that no piece divides.
#[test]
fn large_buffers_arrive_whole() {
    const LEN: usize = 5_000_003;
    let value = |rank: usize, index: usize| (rank as f32 + 1.1) * (index % 1013) as f32;
    let sums = |index: usize| (1..3).fold(value(0, index), |sum, rank| sum + value(rank, index));
    ranks(seats(&[1, 1, 1]), |rank, seat| {
        let mut group = seat.join(PATIENCE).unwrap();
        let shared = group.allocate(DType::F32, LEN).unwrap();
        for mut buffer in [shared, Buffer::zeroed(DType::F32, LEN).unwrap()] {
            for (index, element) in buffer.as_mut_slice::<f32>().unwrap().iter_mut().enumerate() {
                *element = value(rank, index);
            }
            group.all_reduce(&mut buffer, 1..LEN).unwrap();
            let found = buffer.as_slice::<f32>().unwrap();
            assert_eq!(found[0].to_bits(), value(rank, 0).to_bits());
            assert!((1..LEN).all(|index| found[index].to_bits() == sums(index).to_bits()));
        }
        let long = vec![rank as u8; 3_000_000];
        let all = group.gather_bytes(&long).unwrap();
        assert!(
            all.iter()
                .enumerate()
                .all(|(rank, value)| *value == vec![rank as u8; 3_000_000])
        );
    });
}
