//! Libraries that are known by name, and what cordee does with them.

/// What is known of a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// How its file's name begins, up to `.so`.
    pub(crate) stem: &'static str,
    /// The name of its file, of the version that a build asks for unless it says otherwise.
    pub(crate) file: &'static str,
    /// What people call it.
    pub(crate) title: &'static str,
    /// What cordee does with it.
    pub(crate) used_for: &'static str,
    /// How it comes onto a machine.
    pub(crate) comes_with: Source,
    /// Whether there is something else to do the same.
    pub(crate) optional: bool,
}

/// Where a library comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// NVIDIA's driver, which is of the machine and not of its users.
    Driver,
    /// A package of Python's index, or the toolkit.
    Package(&'static str),
    /// The system's own packages.
    System,
}

/// All of them, in the order in which a person wants to read them.
pub(crate) const KNOWN: [Known; 10] = [
    Known {
        stem: "libcuda",
        file: "libcuda.so.1",
        title: "CUDA driver",
        used_for: "everything on a GPU",
        comes_with: Source::Driver,
        optional: false,
    },
    Known {
        stem: "libcudart",
        file: "libcudart.so.13",
        title: "CUDA runtime",
        used_for: "tensors on a GPU",
        comes_with: Source::Package("nvidia-cuda-runtime"),
        optional: false,
    },
    Known {
        stem: "libcublas",
        file: "libcublas.so.13",
        title: "cuBLAS",
        used_for: "products of matrices in layers of candle operations",
        comes_with: Source::Package("nvidia-cublas"),
        optional: false,
    },
    Known {
        stem: "libcublasLt",
        file: "libcublasLt.so.13",
        title: "cuBLASLt",
        used_for: "products of matrices: linear layers, the head",
        comes_with: Source::Package("nvidia-cublas"),
        optional: false,
    },
    Known {
        stem: "libcurand",
        file: "libcurand.so.10",
        title: "cuRAND",
        used_for: "candle's random numbers",
        comes_with: Source::Package("nvidia-curand"),
        optional: false,
    },
    Known {
        stem: "libnvrtc",
        file: "libnvrtc.so.13",
        title: "NVRTC",
        used_for: "compiling kernels, once per machine",
        comes_with: Source::Package("nvidia-cuda-nvrtc"),
        optional: false,
    },
    Known {
        stem: "libnvrtc-builtins",
        file: "libnvrtc-builtins.so.13",
        title: "NVRTC's builtins",
        used_for: "compiling kernels, once per machine",
        comes_with: Source::Package("nvidia-cuda-nvrtc"),
        optional: false,
    },
    Known {
        stem: "libstdc++",
        file: "libstdc++.so.6",
        title: "C++ library",
        used_for: "candle's kernels",
        comes_with: Source::System,
        optional: false,
    },
    Known {
        stem: "libcudnn",
        file: "libcudnn.so.9",
        title: "cuDNN",
        used_for: "attention, in a build with `cudnn`; our own kernel computes it else",
        comes_with: Source::Package("nvidia-cudnn-cu13"),
        optional: true,
    },
    Known {
        stem: "libnccl",
        file: "libnccl.so.2",
        title: "NCCL",
        used_for: "sums over several GPUs",
        comes_with: Source::Package("nvidia-nccl-cu13"),
        optional: true,
    },
];

/// What is known of the library in a file of this name.
pub(crate) fn known(file: &str) -> Option<&'static Known> {
    let stem = file.split_once(".so").map_or(file, |(stem, _)| stem);
    KNOWN.iter().find(|known| known.stem == stem)
}

/// Whether every machine that runs programs has it.
pub(crate) fn is_of_the_system(file: &str) -> bool {
    let starts = [
        "libc.",
        "libm.",
        "libgcc_s.",
        "ld-linux",
        "libdl.",
        "libpthread.",
        "librt.",
    ];
    starts.iter().any(|start| file.starts_with(start))
}
