//! What is saved is read back bit for bit: by any number of writers, whole and by any range.

use std::thread;
use std::time::Duration;

use crate::fixture::{BLOCK, Tensors, info, spec, state};
use cordee_checkpoint::{
    Checkpoint, CheckpointError, CommitInfo, Dtype, Piece, Plan, begin, commit, hash_memory,
    newest_valid, write_shard,
};
use proptest::prelude::*;

#[test]
fn every_number_of_writers_gives_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::mixed(1);
    for (step, writers) in [1, 2, 3, 4, 8, 40].into_iter().enumerate() {
        let committed = tensors
            .save(directory.path(), step as u64, writers)
            .unwrap();
        assert!(committed.warning.is_none());
        let latest = fs_err::read_to_string(directory.path().join("LATEST")).unwrap();
        assert_eq!(latest, format!("step-{step:09}\n"));

        let found = newest_valid(directory.path()).unwrap();
        assert_eq!(found.rejected, []);
        let checkpoint = found.checkpoint.unwrap();
        assert_eq!(checkpoint.path(), committed.path);
        assert_eq!(
            (checkpoint.step(), checkpoint.writers().len()),
            (step as u64, writers)
        );
        assert_eq!(checkpoint.tensors(), tensors.specs);
        assert_eq!(checkpoint.bytes(), committed.bytes);
        for spec in &tensors.specs {
            let expected = &tensors.bytes[&spec.name];
            let mut read = vec![0xaa; expected.len()];
            checkpoint.read(&spec.name, &mut read).unwrap();
            assert!(read == *expected, "{} of {writers} writers", spec.name);
            assert_eq!(
                checkpoint.tensor_hash(&spec.name).unwrap(),
                hash_memory(&[expected])
            );
        }
    }
}

#[test]
fn the_state_comes_back_with_every_bit() {
    let directory = tempfile::tempdir().unwrap();
    Tensors::small(1).save(directory.path(), 7, 1).unwrap();
    let checkpoint = Checkpoint::open(&directory.path().join("step-000000007")).unwrap();
    assert_eq!(*checkpoint.state(), state(7));
    // Equality of floats would let -0.0 pass for 0.0.
    assert_eq!(checkpoint.state().to_string(), state(7).to_string());
}

#[test]
fn shards_are_safetensors_files_that_others_open() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::mixed(2);
    let committed = tensors.save(directory.path(), 1, 3).unwrap();
    let mut covered = 0;
    for writer in 0..3 {
        let file =
            fs_err::read(committed.path.join(format!("rank-{writer:05}.safetensors"))).unwrap();
        assert_eq!(
            (u64::from_le_bytes(file[..8].try_into().unwrap()) + 8) % 4096,
            0
        );
        let shard = safetensors::SafeTensors::deserialize(&file).unwrap();
        for (name, view) in shard.tensors() {
            let (tensor, start) = name.split_once('@').unwrap_or((&name, "0"));
            let spec = tensors
                .specs
                .iter()
                .find(|spec| spec.name == tensor)
                .unwrap();
            assert_eq!(view.dtype(), spec.dtype);
            if !name.contains('@') {
                assert_eq!(view.shape(), spec.shape);
            }
            let from = start.parse::<usize>().unwrap() * (spec.dtype.bitsize() / 8);
            assert!(
                view.data() == &tensors.bytes[tensor][from..from + view.data().len()],
                "{name}"
            );
            let offset = view.data().as_ptr().addr() - file.as_ptr().addr();
            assert_eq!(
                offset % (spec.dtype.bitsize() / 8),
                0,
                "{name} is not aligned"
            );
            covered += view.data().len();
        }
    }
    assert_eq!(covered, tensors.bytes.values().map(Vec::len).sum::<usize>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Ranges that begin and end anywhere, of tensors split among any number of writers.
    #[test]
    fn any_range_is_read(
        writers in 1_usize..9,
        sizes in prop::collection::vec(0_usize..40_000, 1..5),
        ranges in prop::collection::vec((0.0..1.0, 0.0..1.0, 0_usize..5), 20),
        seed in 0_u64..1000,
    ) {
        let dtypes = [Dtype::F32, Dtype::BF16, Dtype::F64, Dtype::U8];
        let specs = (sizes.iter().enumerate())
            .map(|(index, &size)| spec(&format!("t{index}"), dtypes[index % 4], &[size]))
            .collect();
        let tensors = Tensors::new(specs, seed);
        let directory = tempfile::tempdir().unwrap();
        let committed = tensors.save(directory.path(), 1, writers).unwrap();
        let checkpoint = Checkpoint::open(&committed.path).unwrap();
        for (from, to, which) in ranges {
            let spec = &tensors.specs[which % tensors.specs.len()];
            let (elements, size) = (spec.shape[0], spec.dtype.bitsize() / 8);
            let at = |share: f64| (share * (elements + 1) as f64) as usize;
            let (from, to) = (at(f64::min(from, to)), at(f64::max(from, to)));
            let mut read = vec![0; (to - from) * size];
            checkpoint.read_range(&spec.name, from as u64, &mut read).unwrap();
            prop_assert!(read == tensors.bytes[&spec.name][from * size..from * size + read.len()]);
        }
    }
}

#[test]
fn wrong_questions_are_answered_with_the_tensors_size() {
    let directory = tempfile::tempdir().unwrap();
    let committed = Tensors::small(1).save(directory.path(), 1, 1).unwrap();
    let checkpoint = Checkpoint::open(&committed.path).unwrap();
    let ask = |name: &str, start: u64, bytes: usize| {
        checkpoint
            .read_range(name, start, &mut vec![0; bytes])
            .unwrap_err()
            .to_string()
    };
    assert!(ask("wieght", 0, 4).contains("no tensor `wieght`"));
    for (start, bytes) in [(1600, 4), (0, 6404), (0, 3), (u64::MAX, 4)] {
        assert!(
            ask("weight", start, bytes).contains("1600 elements of F32"),
            "{start} {bytes}"
        );
    }
    let error = checkpoint.read("weight", &mut [0; 4]).unwrap_err();
    assert!(
        matches!(error, CheckpointError::InvalidRange { .. }),
        "{error}"
    );
    checkpoint.read_range("weight", 1600, &mut []).unwrap();
}

#[test]
fn writers_at_work_at_once_are_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::mixed(3);
    let plan = Plan::new(&tensors.specs, 4).unwrap();
    let attempt = begin(directory.path(), 5).unwrap();
    let source = |name: &str| tensors.bytes[name].as_slice();
    let committed = thread::scope(|scope| {
        for writer in 0..4 {
            let (plan, attempt) = (&plan, &attempt);
            scope.spawn(move || {
                thread::sleep(Duration::from_millis(30 * writer as u64));
                write_shard(attempt, writer, plan, &source, None, BLOCK).unwrap();
            });
        }
        let deadline = Duration::from_secs(30);
        commit(
            &attempt,
            &CommitInfo {
                deadline,
                ..info(5, &plan)
            },
        )
        .unwrap()
    });
    Checkpoint::open(&committed.path).unwrap().verify().unwrap();
    assert!(!attempt.exists());
}

/// Writers that hold only their own part, as when moments are sharded.
#[test]
fn a_plan_made_elsewhere_is_followed() {
    let tensors = Tensors::new(vec![spec("moments", Dtype::F32, &[1003])], 9);
    let piece = |writer: usize, start: u64, len: u64| Piece {
        tensor: 0,
        start,
        len,
        writer,
    };
    let pieces = vec![piece(2, 700, 303), piece(0, 0, 1), piece(1, 1, 699)];
    let plan = Plan::from_pieces(&tensors.specs, 3, pieces).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let attempt = begin(directory.path(), 1).unwrap();
    let source = |name: &str| tensors.bytes[name].as_slice();
    for writer in 0..3 {
        write_shard(&attempt, writer, &plan, &source, None, BLOCK).unwrap();
    }
    let committed = commit(&attempt, &info(1, &plan)).unwrap();
    let mut read = vec![0; 4012];
    Checkpoint::open(&committed.path)
        .unwrap()
        .read("moments", &mut read)
        .unwrap();
    assert!(read == tensors.bytes["moments"]);
}
