use proptest::prelude::*;

use super::*;

fn find(flags: &Flags, set: &[(&str, &str)]) -> Result<Identity, String> {
    let lookup = |name: &str| {
        let found = set.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Identity::find(flags, &lookup).map_err(|error| error.to_string())
}

fn typed(nnodes: Option<&str>, node_rank: Option<&str>) -> Flags {
    Flags {
        nnodes: nnodes.map(str::to_owned),
        node_rank: node_rank.map(str::to_owned),
        ..Flags::default()
    }
}

fn none() -> Flags {
    Flags::default()
}

/// Node, fewest, most, one worker, local, locals.
fn place(found: &Identity) -> (usize, usize, usize, bool, usize, usize) {
    let Identity {
        node,
        fewest,
        most,
        one_worker,
        local,
        locals,
        ..
    } = *found;
    (node, fewest, most, one_worker, local, locals)
}

const SLURM: [(&str, &str); 7] = [
    ("SLURM_JOB_ID", "77"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_NNODES", "2"),
    ("SLURM_NTASKS", "2"),
    ("SLURM_PROCID", "1"),
    ("SLURM_NODEID", "1"),
    ("SLURM_LOCALID", "0"),
];

#[test]
fn nothing_is_one_node_by_itself() {
    let found = find(&none(), &[("PET_NNODES", "")]).unwrap();
    assert_eq!(place(&found), (0, 1, 1, false, 0, 1));
    assert_eq!(
        (found.source, found.job, found.endpoint),
        (None, None, None)
    );
}

#[test]
fn flags_and_their_names_in_the_environment() {
    let found = find(&typed(Some("2:4"), Some("3")), &[]).unwrap();
    assert_eq!(place(&found), (3, 2, 4, false, 0, 1));
    let set = [
        ("PET_NNODES", "3"),
        ("PET_NODE_RANK", "2"),
        ("PET_RDZV_ENDPOINT", "[fd00::1]:29400"),
        ("PET_RDZV_ID", "job"),
    ];
    let found = find(&none(), &set).unwrap();
    assert_eq!(place(&found), (2, 3, 3, false, 0, 1));
    assert_eq!(found.endpoint, Some(("fd00::1".to_owned(), 29400)));
    assert_eq!(found.job.as_deref(), Some("job"));
    // What is typed comes first: they are names of the same thing.
    let found = find(&typed(Some("2"), Some("0")), &set).unwrap();
    assert_eq!(place(&found), (0, 2, 2, false, 0, 1));
    // A node beyond the most is a spare.
    assert_eq!(find(&typed(Some("2"), Some("2")), &[]).unwrap().node, 2);
}

#[test]
fn a_step_of_slurm_is_a_node_each() {
    let found = find(&none(), &SLURM).unwrap();
    assert_eq!(place(&found), (1, 2, 2, false, 0, 1));
    assert_eq!(found.job.as_deref(), Some("slurm-77-0"));
    assert_eq!(found.source, Some("Slurm"));
    // Fewer are asked for than there are.
    let found = find(&typed(Some("1"), None), &SLURM).unwrap();
    assert_eq!(place(&found), (1, 1, 1, false, 0, 1));
    assert_eq!(found.remarks, ["1 of 2 nodes are spares"]);
    let found = find(&typed(Some("1:8"), None), &SLURM).unwrap();
    assert_eq!(place(&found), (1, 1, 2, false, 0, 1));
}

#[test]
fn a_task_for_each_rank_has_one_worker() {
    let mut set = SLURM.to_vec();
    set.retain(|(name, _)| !["SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"].contains(name));
    set.extend([
        ("SLURM_NTASKS", "5"),
        ("SLURM_PROCID", "4"),
        ("SLURM_LOCALID", "1"),
        ("SLURM_TASKS_PER_NODE", "3,2"),
        ("CUDA_VISIBLE_DEVICES", "0"),
    ]);
    let found = find(&none(), &set).unwrap();
    assert_eq!(place(&found), (4, 5, 5, true, 1, 2));
    assert!(
        found.remarks[0].contains("--gpu-bind=none"),
        "{:?}",
        found.remarks
    );
}

#[test]
fn a_batch_script_is_one_process_whatever_is_allocated() {
    let set: Vec<_> = SLURM
        .into_iter()
        .filter(|(name, _)| *name != "SLURM_STEP_ID")
        .collect();
    let found = find(&none(), &set).unwrap();
    assert_eq!(place(&found), (0, 1, 1, false, 0, 1));
    assert!(
        found.remarks[0].contains("`srun` starts it on all"),
        "{:?}",
        found.remarks
    );
}

#[test]
fn a_worker_of_torchrun_is_one_rank() {
    let set = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "2"),
        ("TORCHELASTIC_RUN_ID", "x"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
    ];
    let found = find(&none(), &set).unwrap();
    assert_eq!(place(&found), (3, 4, 4, true, 1, 2));
    assert_eq!(found.job.as_deref(), Some("torchrun-x"));
    // Within Slurm, which counts machines: other numbers of other things.
    let both: Vec<_> = set.into_iter().chain(SLURM).collect();
    assert_eq!(place(&find(&none(), &both).unwrap()), (3, 4, 4, true, 1, 2));
    // Kubeflow's, of pods.
    let pods = [("RANK", "1"), ("WORLD_SIZE", "2")];
    assert_eq!(find(&none(), &pods).unwrap().most, 1);
}

#[test]
fn pods_of_an_indexed_job_are_counted_by_a_flag() {
    let pod = [("JOB_COMPLETION_INDEX", "1")];
    let found = find(&typed(Some("2"), None), &pod).unwrap();
    assert_eq!(place(&found), (1, 2, 2, false, 0, 1));
    assert_eq!(found.source, Some("Kubernetes"));
    // Without it they would all train the same run.
    let told = find(&none(), &pod).unwrap_err();
    assert!(
        told.starts_with("JOB_COMPLETION_INDEX is 1, and --nnodes is 1 where it is not given"),
        "{told}"
    );
    let first = find(&none(), &[("JOB_COMPLETION_INDEX", "0")]).unwrap();
    assert!(!first.several && first.remarks[0].contains("--nnodes"));
    let alone = find(&typed(Some("1"), None), &pod).unwrap();
    assert_eq!(place(&alone), (0, 1, 1, false, 0, 1));
}

#[test]
fn others_that_start_nodes_or_ranks() {
    let sky = [("SKYPILOT_NODE_RANK", "1"), ("SKYPILOT_NUM_NODES", "2")];
    assert_eq!(place(&find(&none(), &sky).unwrap()), (1, 2, 2, false, 0, 1));
    let mpi = |local, locals| {
        [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", local),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", locals),
        ]
    };
    let found = |local, locals| place(&find(&none(), &mpi(local, locals)).unwrap());
    assert_eq!(found("0", "1"), (1, 2, 2, false, 0, 1));
    assert_eq!(found("1", "2"), (1, 2, 2, true, 1, 2));
    // Slurm's are those of the daemon that mpirun started on the node.
    let nested = [&mpi("1", "2")[..], &SLURM].concat();
    assert_eq!(
        place(&find(&none(), &nested).unwrap()),
        (1, 2, 2, true, 1, 2)
    );
}

#[test]
fn who_disagrees_is_named_with_both_values() {
    let told = find(&typed(None, Some("0")), &SLURM).unwrap_err();
    assert_eq!(
        told,
        "--node-rank is 0, and SLURM_NODEID is 1: they say different things of which of the nodes this is"
    );
    let mut set = SLURM.to_vec();
    set.extend([("SKYPILOT_NODE_RANK", "1"), ("SKYPILOT_NUM_NODES", "3")]);
    let told = find(&none(), &set).unwrap_err();
    assert!(
        told.starts_with("SLURM_NNODES is 2, and SKYPILOT_NUM_NODES is 3"),
        "{told}"
    );
    let told = find(&typed(Some("3"), None), &SLURM).unwrap_err();
    assert_eq!(
        told,
        "--nnodes is 3, and SLURM_NNODES is 2: that is too few"
    );
}

#[test]
fn what_makes_no_sense_is_named() {
    type Case<'a> = (Flags, &'a [(&'a str, &'a str)], &'a str);
    let cases: [Case<'_>; 8] = [
        (
            typed(None, Some("1")),
            &[],
            "--node-rank is 1, and --nnodes is 1 where it is not given",
        ),
        (typed(Some("0"), None), &[], "--nnodes is `0`"),
        (typed(Some("3:2"), None), &[], "--nnodes is `3:2`"),
        (typed(Some("2"), Some("one")), &[], "--node-rank is `one`"),
        (
            typed(Some("2"), None),
            &[],
            "nothing says which of the nodes this is",
        ),
        (
            typed(None, Some("1")),
            &[("SKYPILOT_NUM_NODES", "1")],
            "counted from 0",
        ),
        (none(), &[("PET_RDZV_ENDPOINT", "host")], "HOST:PORT"),
        (
            none(),
            &[("OMPI_COMM_WORLD_RANK", "-1")],
            "OMPI_COMM_WORLD_RANK is `-1`",
        ),
    ];
    for (flags, set, says) in cases {
        let told = find(&flags, set).unwrap_err();
        assert!(told.contains(says), "{told}");
    }
    let mut heterogeneous = SLURM.to_vec();
    heterogeneous.push(("SLURM_HET_SIZE", "2"));
    assert!(
        find(&none(), &heterogeneous)
            .unwrap_err()
            .contains("heterogeneous")
    );
    let told = find(&typed(Some("2"), Some("1")), &heterogeneous).unwrap();
    assert_eq!(place(&told), (1, 2, 2, false, 0, 1));
}

#[test]
fn tasks_are_counted_node_by_node() {
    assert_eq!(sources::tasks_per_node("2(x3),1"), [2, 2, 2, 1]);
    assert_eq!(sources::tasks_per_node("8"), [8]);
    assert!(sources::tasks_per_node("8(x").is_empty());
    assert!(sources::tasks_per_node("1(x99999999999)").is_empty());
}

proptest! {
    #[test]
    fn any_text_is_understood_or_refused(nnodes in "[0-9:x]{0,5}", tasks in "[0-9(x),]{0,12}", node in "[0-9-]{0,3}") {
        let mut set = SLURM.to_vec();
        set.push(("SLURM_TASKS_PER_NODE", &tasks));
        set.push(("PET_NNODES", &nnodes));
        set.retain(|(name, _)| *name != "SLURM_NODEID");
        set.push(("SLURM_NODEID", &node));
        if let Ok(found) = find(&none(), &set) {
            prop_assert!(found.fewest <= found.most && found.local < found.locals);
        }
    }
}
