//! The library of NVIDIA, on a machine with or without a GPU: what it says of itself, and that its
//! refusals are understood. `CORDEE_TEST_NCCL` names its file; without it there is nothing to test.

#![expect(clippy::unwrap_used, reason = "a test panics where something is wrong")]
#![expect(clippy::print_stdout, reason = "what is skipped is to be seen")]

use std::{
    env,
    path::PathBuf,
    ptr,
    time::{Duration, Instant},
};

use nccl_sys::{Config, Library, Status, UniqueId};

fn library() -> Option<Library> {
    let Some(path) = env::var_os("CORDEE_TEST_NCCL") else {
        println!("skipped: CORDEE_TEST_NCCL does not name a libnccl.so.2");
        return None;
    };
    let library = Library::open(&[PathBuf::from(path)]).unwrap();
    println!("{library:?}");
    Some(library)
}

fn unique_id(library: &Library) -> UniqueId {
    let mut id = UniqueId { internal: [0; 128] };
    // SAFETY: writes the id.
    let status = unsafe { (library.functions().get_unique_id)(&raw mut id) };
    assert_eq!(status, Status::SUCCESS, "{}", library.last_error());
    id
}

#[test]
fn it_tells_its_version_and_makes_ids() {
    let Some(library) = library() else { return };
    assert!(library.version().0 >= 21_900, "{library:?}");
    let [one, two] = [unique_id(&library), unique_id(&library)];
    assert!(one != two && one.internal != [0; 128]);
    assert_eq!(library.error_string(Status::SUCCESS), "no error");
    assert!(
        library
            .error_string(Status::INVALID_USAGE)
            .contains("invalid usage")
    );
}

/// The config passes: what NCCL complains about is that there is no GPU. With one, a world of one
/// comes into being and is aborted.
#[test]
fn a_communicator_is_made_or_refused_with_a_reason() {
    let Some(library) = library() else { return };
    let functions = library.functions();
    let (id, mut config, mut comm) = (unique_id(&library), Config::non_blocking(), ptr::null_mut());
    // SAFETY: the places are ours, and the id is a fresh one.
    let mut status =
        unsafe { (functions.comm_init_rank_config)(&raw mut comm, 1, id, 0, &raw mut config) };
    let begun = Instant::now();
    while status == Status::IN_PROGRESS && begun.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(10));
        // SAFETY: the communicator is being made, and may be asked about.
        unsafe { (functions.comm_get_async_error)(comm, &raw mut status) };
    }
    println!("{}: {}", library.error_string(status), library.last_error());
    if status == Status::SUCCESS {
        // SAFETY: made above, and not used again.
        assert_eq!(unsafe { (functions.comm_abort)(comm) }, Status::SUCCESS);
        return;
    }
    assert!(
        [Status::UNHANDLED_CUDA_ERROR, Status::SYSTEM_ERROR].contains(&status),
        "result {}: {}",
        status.0,
        library.last_error()
    );
    let why = library.last_error();
    assert!(why.contains("CUDA") || why.contains("cuda"), "{why}");
}

/// A config that is not NCCL's is refused before anything else: the test above is worth something.
#[test]
fn a_config_of_another_kind_is_refused() {
    let Some(library) = library() else { return };
    let mut config = Config::non_blocking();
    // SAFETY: the magic lies behind the size, in a struct of this test.
    unsafe { (&raw mut config).cast::<u8>().add(8).write(0) };
    let mut comm = ptr::null_mut();
    // SAFETY: as above.
    let status = unsafe {
        let id = unique_id(&library);
        (library.functions().comm_init_rank_config)(&raw mut comm, 1, id, 0, &raw mut config)
    };
    println!("{}: {}", library.error_string(status), library.last_error());
    assert_ne!(status, Status::SUCCESS);
}
