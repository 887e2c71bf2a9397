//! The search over trees that are made up.

use std::{
    ffi::OsString,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{elf::MACHINE, loader::cache_of, search::Found, *};

/// A file system of its own.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(path)
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.at(path);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }

    /// A library, as far as its first bytes tell.
    fn library(&self, path: &str) {
        self.write(path, &header(MACHINE));
    }

    fn places(&self) -> Places {
        Places {
            root: self.at(""),
            ..Places::default()
        }
    }
}

fn header(machine: u16) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(18, 0);
    bytes.extend(machine.to_le_bytes());
    bytes.resize(64, 0);
    bytes
}

fn path(found: Option<Found>) -> PathBuf {
    found.expect("it is there").path
}

#[test]
fn what_is_given_comes_first_and_python_last() {
    let tree = Tree::new();
    let file = "libcublas.so.13";
    // From the last place to the first.
    let places_of_one = [
        ("usr/lib/python3/dist-packages/nvidia/cu13/lib", "Python"),
        (
            "home/.local/lib/python3.12/site-packages/nvidia/cublas/lib",
            "Python",
        ),
        ("env/lib/python3.9/site-packages/nvidia/cu13/lib", "Python"),
        ("env/lib/python3.11/site-packages/nvidia/cu13/lib", "Python"),
        ("env/lib", "VIRTUAL_ENV"),
        ("usr/local/cuda-13.0/lib64", "toolkit"),
        ("usr/local/cuda-13.10/lib64", "toolkit"),
        ("usr/local/cuda/lib64", "toolkit"),
        ("usr/lib64", "the loader"),
        ("opt/cached", "the loader"),
        ("home/toolkit/lib64", "CUDA_HOME"),
        ("loader", "LD_LIBRARY_PATH"),
        ("given/two", "CORDEE_LIBRARY_PATH"),
        ("given/one", "CORDEE_LIBRARY_PATH"),
    ];
    tree.write("etc/ld.so.cache", &cache_of(&["/opt/cached/libother.so.1"]));
    let places = Places {
        given: Some(std::env::join_paths([tree.at("given/one"), tree.at("given/two")]).unwrap()),
        loader_path: Some(tree.at("loader").into()),
        toolkits: vec![("CUDA_HOME", tree.at("home/toolkit"))],
        environments: vec![("VIRTUAL_ENV", tree.at("env"))],
        home: Some(tree.at("home")),
        ..tree.places()
    };
    assert_eq!(places.search().find(file), None);
    for (directory, origin) in places_of_one {
        tree.library(&format!("{directory}/{file}"));
        let found = places.search().find(file).unwrap();
        assert_eq!(found.path, tree.at(directory).join(file));
        assert_eq!(found.origin, origin);
    }
}

#[test]
fn the_packages_of_a_python_in_the_path_are_found() {
    let tree = Tree::new();
    let mut places = tree.places();
    // An environment's Python is a link to another, whose packages count too.
    tree.write("opt/python/bin/python3.11", b"#!");
    for link in ["opt/python/bin/python3", "env/bin/python3"] {
        fs_err::create_dir_all(tree.at(link).parent().unwrap()).unwrap();
        symlink(tree.at("opt/python/bin/python3.11"), tree.at(link)).unwrap();
    }
    places.path = tree.at("env/bin").into();
    let base = "opt/python/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2";
    tree.library(base);
    assert_eq!(path(places.search().find("libnccl.so.2")), tree.at(base));
    let own = "env/lib/python3.11/site-packages/nvidia/nccl/lib/libnccl.so.2";
    tree.library(own);
    assert_eq!(path(places.search().find("libnccl.so.2")), tree.at(own));
}

#[test]
fn files_of_another_kind_are_passed_over() {
    let tree = Tree::new();
    let file = "libcuda.so.1";
    tree.write(
        &format!("usr/local/cuda/lib64/{file}"),
        &header(MACHINE + 1),
    );
    tree.write(&format!("opt/cuda/lib64/{file}"), b"GROUP ( libcuda.so )");
    fs_err::create_dir_all(tree.at(&format!("usr/lib64/{file}"))).unwrap();
    assert_eq!(tree.places().search().find(file), None);
    let right = format!("usr/local/cuda-13.0/lib64/{file}");
    tree.library(&right);
    assert_eq!(path(tree.places().search().find(file)), tree.at(&right));
}

#[test]
fn a_version_may_go_on_after_the_name() {
    let tree = Tree::new();
    tree.library("usr/lib64/libnvrtc-builtins.so.13.0.88");
    tree.library("usr/lib64/libnvrtc-builtins.so.130");
    let found = path(tree.places().search().find("libnvrtc-builtins.so.13"));
    assert_eq!(found, tree.at("usr/lib64/libnvrtc-builtins.so.13.0.88"));
}

#[test]
fn the_loader_is_told_of_what_it_would_not_find() {
    let tree = Tree::new();
    let files = ["libcuda.so.1", "libcublas.so.13", "libnccl.so.2"].map(str::to_owned);
    tree.library("usr/lib64/libcuda.so.1");
    tree.library("before/libcublas.so.13");
    let mut places = Places {
        loader_path: Some(tree.at("before").into()),
        ..tree.places()
    };
    // All in the loader's own places, or nowhere.
    assert_eq!(places.search().loader_path(&files), None);
    let nccl = "usr/lib/python3/dist-packages/nvidia/nccl/lib";
    tree.library(&format!("{nccl}/libnccl.so.2"));
    let joined = |paths: &[&str]| -> OsString {
        std::env::join_paths(paths.iter().map(|path| tree.at(path))).unwrap()
    };
    let told = places.search().loader_path(&files);
    assert_eq!(told, Some(joined(&["before", nccl])));
    // What is not needed is not told of.
    assert_eq!(places.search().loader_path(&files[..2]), None);
    tree.library("given/libcublas.so.13");
    places.given = Some(tree.at("given").into());
    let told = places.search().loader_path(&files);
    assert_eq!(told, Some(joined(&["given", "before", nccl])));
}

#[test]
fn versions_are_read_from_files_and_packages() {
    let tree = Tree::new();
    tree.library("usr/lib64/libcublas.so.13.0.2");
    symlink("libcublas.so.13.0.2", tree.at("usr/lib64/libcublas.so.13")).unwrap();
    let of = |path: &str| version(&tree.at(path));
    assert_eq!(of("usr/lib64/libcublas.so.13").as_deref(), Some("13.0.2"));

    tree.library("site-packages/nvidia/cu13/lib/libnvrtc.so.13");
    tree.library("site-packages/nvidia/nccl/lib/libnccl.so.2");
    assert_eq!(of("site-packages/nvidia/nccl/lib/libnccl.so.2"), None);
    for package in [
        "nvidia_cuda_nvrtc-13.0.88",
        "nvidia_nccl_cu13-2.28.3",
        "nvidia_nccl_tools-9",
    ] {
        tree.write(&format!("site-packages/{package}.dist-info/RECORD"), b"");
    }
    let nvrtc = of("site-packages/nvidia/cu13/lib/libnvrtc.so.13");
    assert_eq!(nvrtc.as_deref(), Some("13.0.88"));
    let nccl = of("site-packages/nvidia/nccl/lib/libnccl.so.2");
    assert_eq!(nccl.as_deref(), Some("2.28.3"));
}

#[test]
fn programs_say_what_they_need() {
    let this = std::env::current_exe().unwrap();
    let needed = needed(&this).unwrap();
    assert!(
        needed.iter().any(|file| file.starts_with("libc.")),
        "{needed:?}"
    );
    assert!(
        needed.iter().all(|file| is_of_the_system(file)),
        "{needed:?}"
    );
    assert!(super::needed(Path::new("/dev/null")).is_err());
}

#[test]
fn known_libraries_are_known_by_their_files() {
    for library in &super::known::KNOWN {
        assert_eq!(known(library.file), Some(library));
    }
    assert_eq!(known("libcublas.so.12").unwrap().title, "cuBLAS");
    assert_eq!(known("libother.so.1"), None);
}
