//! Damage of every kind: it is named, the checkpoint before is used, nothing is loaded silently.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fixture::{BLOCK, Tensors, info};
use cordee_checkpoint::{
    CandidateKind, Checkpoint, CheckpointError, CommitInfo, Found, Plan, abandon, begin, commit,
    discover, newest_valid, retain, write_shard,
};

/// Two checkpoints, of which the newer is to be damaged.
fn two_checkpoints() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    Tensors::small(1).save(directory.path(), 10, 2).unwrap();
    let newer = Tensors::small(2).save(directory.path(), 20, 2).unwrap();
    (directory, newer.path)
}

/// Asserts that the search falls back to step 10 and that the reason names `culprit`.
fn assert_falls_back(found: &Found, culprit: &str, damage: &str) {
    let step = found.checkpoint.as_ref().map(Checkpoint::step);
    assert_eq!(step, Some(10), "{damage}");
    let [rejected] = found.rejected.as_slice() else {
        panic!("{damage}: {:?}", found.rejected);
    };
    assert!(rejected.path.ends_with("step-000000020"), "{damage}");
    assert!(
        rejected.reason.contains(culprit),
        "{damage}: {}",
        rejected.reason
    );
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = (fs_err::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(
        files.len(),
        5,
        "a manifest, and a shard and a record of two writers"
    );
    files
}

fn name(file: &Path) -> &str {
    file.file_name().unwrap().to_str().unwrap()
}

#[test]
fn any_file_missing() {
    let (directory, newer) = two_checkpoints();
    for file in files(&newer) {
        let bytes = fs_err::read(&file).unwrap();
        fs_err::remove_file(&file).unwrap();
        assert_falls_back(
            &newest_valid(directory.path()).unwrap(),
            name(&file),
            "removed",
        );
        fs_err::write(&file, bytes).unwrap();
    }
    assert_eq!(
        newest_valid(directory.path())
            .unwrap()
            .checkpoint
            .unwrap()
            .step(),
        20
    );
}

#[test]
fn any_file_cut_at_any_length_or_too_long() {
    let (directory, newer) = two_checkpoints();
    for file in files(&newer) {
        let bytes = fs_err::read(&file).unwrap();
        let lengths = (0..bytes.len()).step_by(173).chain([bytes.len() - 1]);
        for length in lengths {
            fs_err::write(&file, &bytes[..length]).unwrap();
            assert_falls_back(&newest_valid(directory.path()).unwrap(), name(&file), "cut");
        }
        fs_err::write(&file, [bytes.as_slice(), b"\n"].concat()).unwrap();
        assert_falls_back(
            &newest_valid(directory.path()).unwrap(),
            name(&file),
            "too long",
        );
        fs_err::write(&file, bytes).unwrap();
    }
}

#[test]
fn any_bit_flipped_in_header_data_record_or_manifest() {
    let (directory, newer) = two_checkpoints();
    for file in files(&newer) {
        let bytes = fs_err::read(&file).unwrap();
        for (count, at) in (0..bytes.len())
            .step_by(61)
            .chain([bytes.len() - 1])
            .enumerate()
        {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (count % 8);
            fs_err::write(&file, flipped).unwrap();
            let damage = format!("bit {} of byte {at}", count % 8);
            assert_falls_back(
                &newest_valid(directory.path()).unwrap(),
                name(&file),
                &damage,
            );
        }
        fs_err::write(&file, bytes).unwrap();
    }
}

#[test]
fn a_read_verifies_and_names_file_block_and_offset() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::mixed(4);
    let committed = tensors.save(directory.path(), 1, 1).unwrap();
    let checkpoint = Checkpoint::open(&committed.path).unwrap();
    let shard = committed.path.join("rank-00000.safetensors");
    let piece = (checkpoint.writers()[0].pieces.iter())
        .find(|piece| piece.tensor == "ffn")
        .unwrap();
    let mut bytes = fs_err::read(&shard).unwrap();
    // Element 50,000 of a tensor of two-byte elements.
    let (at, block_size) = (piece.offset + 100_000, BLOCK as u64);
    bytes[at as usize] ^= 4;
    fs_err::write(&shard, bytes).unwrap();

    let mut element = [0; 2];
    let error = checkpoint
        .read_range("ffn", 50_000, &mut element)
        .unwrap_err();
    let CheckpointError::BlockDiffers {
        path,
        block,
        offset,
        len,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (path, *block, *offset, *len),
        (
            &shard,
            at / block_size,
            at / block_size * block_size,
            block_size
        )
    );
    assert!(
        error.to_string().contains("use an older checkpoint"),
        "{error}"
    );
    let mut whole = vec![0; tensors.bytes["ffn"].len()];
    assert!(checkpoint.read("ffn", &mut whole).is_err());
    assert!(checkpoint.tensor_hash("ffn").is_err());
    // What lies elsewhere is still good.
    checkpoint.read_range("ffn", 0, &mut element).unwrap();
    assert_eq!(element, tensors.bytes["ffn"][..2]);
}

#[test]
fn a_file_that_vanishes_or_shrinks_after_the_opening_is_named() {
    let (_directory, newer) = two_checkpoints();
    let checkpoint = Checkpoint::open(&newer).unwrap();
    let shard = newer.join("rank-00000.safetensors");
    let mut whole = vec![0; 6400];
    fs_err::OpenOptions::new()
        .write(true)
        .open(&shard)
        .unwrap()
        .set_len(5000)
        .unwrap();
    let error = checkpoint
        .read("weight", &mut whole)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rank-00000.safetensors") && error.contains("5000 bytes"),
        "{error}"
    );
    fs_err::remove_file(&shard).unwrap();
    let error = checkpoint
        .read("weight", &mut whole)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("rank-00000.safetensors") && error.contains("missing"),
        "{error}"
    );
}

#[test]
fn replicas_that_differ_fail_the_commit_and_are_listed() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::small(1);
    let plan = Plan::new(&tensors.specs, 5).unwrap();
    let attempt = begin(directory.path(), 3).unwrap();
    let source = |name: &str| tensors.bytes[name].as_slice();
    for (writer, hash) in [Some("aa"), Some("bb"), None, Some("bb"), Some("bb")]
        .into_iter()
        .enumerate()
    {
        write_shard(
            &attempt,
            writer,
            &plan,
            &source,
            hash.map(str::to_owned),
            BLOCK,
        )
        .unwrap();
    }
    let error = commit(&attempt, &info(3, &plan)).unwrap_err();
    let CheckpointError::ReplicasDiffer { step: 3, groups } = &error else {
        panic!("{error}");
    };
    assert_eq!(
        *groups,
        [("bb".to_owned(), vec![1, 3, 4]), ("aa".to_owned(), vec![0])]
    );
    assert!(error.to_string().contains("writers [0] hold aa"), "{error}");
    abandon(&attempt).unwrap();
    assert!(newest_valid(directory.path()).unwrap().checkpoint.is_none());
    assert!(discover(directory.path()).unwrap().is_empty());
}

#[test]
fn a_writer_that_does_not_finish_fails_the_commit_at_the_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let (attempt, plan) = Tensors::small(1).write(directory.path(), 3, 3).unwrap();
    fs_err::remove_file(attempt.join("rank-00001.json")).unwrap();
    let deadline = Duration::from_millis(60);
    let error = commit(
        &attempt,
        &CommitInfo {
            deadline,
            ..info(3, &plan)
        },
    )
    .unwrap_err();
    let CheckpointError::WritersMissing {
        missing, waited, ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(*missing, [1]);
    assert!(*waited >= deadline);
}

#[test]
fn what_writers_left_is_checked_before_the_commit() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::small(1);
    let attempt_with = |damage: &dyn Fn(&Path)| {
        let (attempt, plan) = tensors.write(directory.path(), 3, 2).unwrap();
        damage(&attempt);
        commit(&attempt, &info(3, &plan)).unwrap_err().to_string()
    };
    let error = attempt_with(&|attempt| {
        fs_err::remove_file(attempt.join("rank-00001.safetensors")).unwrap();
    });
    assert!(
        error.contains("rank-00001.safetensors is damaged: the file is missing"),
        "{error}"
    );
    let error = attempt_with(&|attempt| {
        fs_err::write(attempt.join("rank-00000.safetensors"), "short").unwrap();
    });
    assert!(
        error.contains("rank-00000.safetensors is damaged: it has 5 bytes"),
        "{error}"
    );
    let error =
        attempt_with(&|attempt| fs_err::write(attempt.join("rank-00001.json"), "{}").unwrap());
    assert!(
        error.contains("rank-00001.json is damaged: not a writer's record"),
        "{error}"
    );
    let error = attempt_with(&|attempt| {
        fs_err::copy(
            attempt.join("rank-00000.json"),
            attempt.join("rank-00001.json"),
        )
        .unwrap();
    });
    assert!(
        error.contains("it is of writer 0, expected writer 1"),
        "{error}"
    );

    // A rank with another config writes for another plan.
    let (attempt, _) = tensors.write(directory.path(), 3, 2).unwrap();
    let other = Plan::new(&tensors.specs[..2], 2).unwrap();
    let error = commit(&attempt, &info(3, &other)).unwrap_err();
    assert!(
        matches!(error, CheckpointError::PlanDiffers { writer: 0, .. }),
        "{error}"
    );
    assert!(newest_valid(directory.path()).unwrap().checkpoint.is_none());
}

#[test]
fn a_source_without_the_bytes_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::small(1);
    let plan = Plan::new(&tensors.specs, 1).unwrap();
    let attempt = begin(directory.path(), 3).unwrap();
    let short = |name: &str| &tensors.bytes[name][..5];
    let error = write_shard(&attempt, 0, &plan, &short, None, BLOCK)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("of tensor `weight`") && error.contains("only 5 bytes"),
        "{error}"
    );
    assert_eq!(fs_err::read_dir(&attempt).unwrap().count(), 0);

    assert!(write_shard(&attempt, 1, &plan, &short, None, BLOCK).is_err());
    for block_size in [0, 1, 4095, 2 << 30] {
        let error = write_shard(&attempt, 0, &plan, &short, None, block_size).unwrap_err();
        assert!(
            matches!(error, CheckpointError::InvalidBlockSize { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_state_that_json_would_not_give_back_is_refused_at_the_save() {
    let directory = tempfile::tempdir().unwrap();
    let (attempt, plan) = Tensors::small(1).write(directory.path(), 3, 1).unwrap();
    let deep = (0..200).fold(serde_json::Value::Null, |inner, _| {
        serde_json::json!([inner])
    });
    let error = commit(
        &attempt,
        &CommitInfo {
            state: deep,
            ..info(3, &plan)
        },
    )
    .unwrap_err();
    assert!(
        matches!(error, CheckpointError::InvalidState { step: 3, .. }),
        "{error}"
    );
    // The same attempt can still be committed with a sane state.
    commit(&attempt, &info(3, &plan)).unwrap();
}

#[test]
fn a_second_save_of_a_step_takes_the_place_of_the_first() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (Tensors::small(1), Tensors::small(2));
    first.save(directory.path(), 3, 2).unwrap();
    // An attempt at the same step that a crash left behind, with a file of a larger world.
    let (stale, _) = first.write(directory.path(), 3, 7).unwrap();
    assert!(stale.join("rank-00006.json").exists());
    second.save(directory.path(), 3, 1).unwrap();

    let found = newest_valid(directory.path()).unwrap();
    assert_eq!(found.rejected, []);
    let mut read = vec![0; 6400];
    found.checkpoint.unwrap().read("weight", &mut read).unwrap();
    assert!(read == second.bytes["weight"]);
    let mut names: Vec<_> = (fs_err::read_dir(directory.path()).unwrap())
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["LATEST", "step-000000003"]);
}

#[test]
fn a_second_writer_of_the_same_shard_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let tensors = Tensors::small(1);
    let (attempt, plan) = tensors.write(directory.path(), 3, 1).unwrap();
    let source = |name: &str| tensors.bytes[name].as_slice();
    let error = write_shard(&attempt, 0, &plan, &source, None, BLOCK).unwrap_err();
    assert!(
        error.to_string().contains("rank-00000.safetensors"),
        "{error}"
    );
    // What the first one wrote is untouched.
    let committed = commit(&attempt, &info(3, &plan)).unwrap();
    Checkpoint::open(&committed.path).unwrap().verify().unwrap();
}

#[test]
fn only_attempts_are_abandoned() {
    let (_directory, newer) = two_checkpoints();
    assert!(abandon(&newer).is_err());
    assert!(newer.exists());
    abandon(&newer.with_file_name(".tmp-step-000000099")).unwrap();
}

#[test]
fn retention_keeps_the_newest_sound_ones_and_clears_what_crashes_left() {
    let directory = tempfile::tempdir().unwrap();
    let checkpoints = directory.path();
    let tensors = Tensors::small(1);
    let at = |name: &str| checkpoints.join(name);
    for step in [10, 20, 30, 40, 50] {
        tensors.save(checkpoints, step, 1).unwrap();
    }
    assert!(retain(checkpoints, 0).unwrap().is_empty());
    // The newest is damaged: it neither counts nor goes.
    fs_err::write(at("step-000000050/MANIFEST.json"), "{").unwrap();
    tensors.write(checkpoints, 35, 1).unwrap();
    tensors.write(checkpoints, 60, 1).unwrap();
    fs_err::create_dir(at(".trash-step-000000001")).unwrap();
    fs_err::write(at("notes.txt"), "mine").unwrap();

    let removed = retain(checkpoints, 2).unwrap();
    let expected = [
        "step-000000010",
        "step-000000020",
        ".tmp-step-000000035",
        ".trash-step-000000001",
    ];
    assert_eq!(removed, expected.map(at));
    let left: Vec<_> = discover(checkpoints)
        .unwrap()
        .iter()
        .map(|found| (found.step, found.kind))
        .collect();
    let committed = CandidateKind::Committed;
    assert_eq!(
        left,
        [
            (60, CandidateKind::HalfWritten),
            (50, committed),
            (40, committed),
            (30, committed)
        ]
    );
    assert!(at("notes.txt").exists() && removed.iter().all(|path| !path.exists()));
    assert_eq!(
        newest_valid(checkpoints)
            .unwrap()
            .checkpoint
            .unwrap()
            .step(),
        40
    );

    // Only one left that opens: it stays, whatever else there is.
    retain(checkpoints, 1).unwrap();
    retain(checkpoints, 1).unwrap();
    assert_eq!(
        newest_valid(checkpoints)
            .unwrap()
            .checkpoint
            .unwrap()
            .step(),
        40
    );
}

#[test]
fn an_empty_or_absent_directory_has_no_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path().to_owned(), directory.path().join("absent")] {
        assert!(discover(&path).unwrap().is_empty());
        let found = newest_valid(&path).unwrap();
        assert!(found.checkpoint.is_none() && found.rejected.is_empty());
        assert!(retain(&path, 1).unwrap().is_empty());
    }
}
