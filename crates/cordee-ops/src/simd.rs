//! Loops compiled several times, for the vectors that a processor may have, and chosen when they run.

use std::sync::LazyLock;

/// Vectors that loops are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// What every processor of this architecture has.
    Baseline,
    /// 256 bits, with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// The widest vectors of this processor.
pub(crate) fn vectors() -> Vectors {
    static VECTORS: LazyLock<Vectors> = LazyLock::new(detect);
    *VECTORS
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Vectors {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) => Vectors::Avx512,
        (true, false) => Vectors::Avx2,
        (false, _) => Vectors::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Vectors {
    Vectors::Baseline
}

/// Defines functions whose loops use the widest vectors of the processor that runs them.
///
/// A body is inlined into one copy per kind of vector. What it calls must be inlined too, or is
/// compiled for the baseline; and a call costs a comparison, so it should be worth a few hundred
/// elements.
macro_rules! vectorised {
    ($(
        $(#[$doc:meta])*
        $visibility:vis fn $name:ident<$($generic:ident: $bound:ident),+>(
            $($argument:ident: $type:ty),* $(,)?
        ) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$doc])*
        $visibility fn $name<$($generic: $bound),+>($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<$($generic: $bound),+>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2<$($generic: $bound),+>($($argument: $type),*) $(-> $result)? {
                body::<$($generic),+>($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<$($generic: $bound),+>($($argument: $type),*) $(-> $result)? {
                body::<$($generic),+>($($argument),*)
            }

            match crate::simd::vectors() {
                crate::simd::Vectors::Baseline => body::<$($generic),+>($($argument),*),
                // SAFETY: `vectors` has found the features on this processor.
                #[cfg(target_arch = "x86_64")]
                crate::simd::Vectors::Avx2 => unsafe { avx2::<$($generic),+>($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                crate::simd::Vectors::Avx512 => unsafe { avx512::<$($generic),+>($($argument),*) },
            }
        }
    )*};
}
pub(crate) use vectorised;
