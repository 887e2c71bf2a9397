use cordee_memory::ViewMut;

use super::{Stream, normal_fill, philox};
use crate::{
    float::Float,
    testing::{assert_thread_independent, widen},
};

fn fill<T: Float>(count: usize, stream: Stream, std: f64) -> Vec<T> {
    let mut values = vec![T::ZERO; count];
    let mut view = ViewMut::from_slice(&mut values, &[count]).unwrap();
    normal_fill(&mut view, stream, 0, std).unwrap();
    values
}

/// The three known answers that the authors' Random123 library publishes for philox4x32-10.
#[test]
fn philox_gives_the_known_answers() {
    let zeros = philox::block(0, [0, 0]);
    assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = philox::block(u64::MAX, [u64::MAX, u64::MAX]);
    assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let counter = [0x85a3_08d3_243f_6a88, 0x0370_7344_1319_8a2e];
    let pi = philox::block(0x299f_31d0_a409_3822, counter);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

/// Weights of a run depend on these numbers: they must never change.
#[test]
fn names_are_hashed_by_fnv_1a() {
    assert_eq!(Stream::named(7, "a"), Stream::new(7, 0xaf63_dc4c_8601_ec8c));
}

/// Weights of a run depend on these numbers too: which deviate goes where must never change.
#[test]
fn deviates_keep_their_places() {
    let values = fill::<f32>(4_100, Stream::named(7, "a"), 1.0);
    let found: Vec<f32> = [0, 1, 2, 3, 4, 4_095, 4_096, 4_099]
        .map(|index| values[index])
        .to_vec();
    let expected = [
        0.944_689_3_f32,
        -0.195_781_48,
        0.057_359_494,
        0.876_722_93,
        -0.889_867_6,
        2.082_564_8,
        0.473_626_26,
        0.462_454_32,
    ];
    for (found, expected) in found.iter().zip(expected) {
        // The last bit may be another's mathematical library's.
        assert!(
            (found - expected).abs() <= 1e-6,
            "{found}, expected {expected}"
        );
    }
}

#[test]
fn an_element_depends_on_its_place_alone() {
    let stream = Stream::named(3, "weights");
    let long = fill::<f32>(10_001, stream, 0.02);
    let short = fill::<f32>(4_099, stream, 0.02);
    assert_eq!(long[..4_099], short[..]);
    assert_ne!(long, fill::<f32>(10_001, Stream::named(4, "weights"), 0.02));
    assert_ne!(long, fill::<f32>(10_001, Stream::named(3, "others"), 0.02));
    assert_thread_independent(|| vec![("values", widen(&fill::<f32>(20_000, stream, 1.0)))]);
}

/// Whoever fills a part gets what the whole has there.
#[test]
fn a_part_is_filled_from_its_first() {
    let stream = Stream::named(3, "weights");
    let whole = fill::<f32>(9_000, stream, 0.02);
    for (first, count) in [
        (0, 3),
        (1, 1),
        (3, 2),
        (6, 4_099),
        (4_097, 4_903),
        (8_999, 1),
    ] {
        let mut part = vec![0.0_f32; count];
        let mut view = ViewMut::from_slice(&mut part, &[count]).unwrap();
        normal_fill(&mut view, stream, first as u64, 0.02).unwrap();
        assert_eq!(part, whole[first..first + count], "{count} from {first}");
    }
}

#[test]
fn deviates_have_the_moments_of_the_normal_distribution() {
    let values = fill::<f64>(400_000, Stream::new(1, 2), 2.0);
    let moment = |power| {
        values
            .iter()
            .map(|value| (value / 2.0_f64).powi(power))
            .sum::<f64>()
            / values.len() as f64
    };
    // Five standard deviations of each mean.
    assert!(moment(1).abs() < 0.008, "mean {}", moment(1));
    assert!((moment(2) - 1.0).abs() < 0.0112, "variance {}", moment(2));
    assert!(moment(3).abs() < 0.031, "skew {}", moment(3));
    assert!((moment(4) - 3.0).abs() < 0.078, "kurtosis {}", moment(4));
    let neighbours: f64 = values.windows(2).map(|pair| pair[0] * pair[1] / 4.0).sum();
    assert!(
        (neighbours / values.len() as f64).abs() < 0.008,
        "neighbours are correlated"
    );
}

#[test]
fn a_negative_deviation_is_refused() {
    let mut values = [0.0_f32; 4];
    let mut view = ViewMut::from_slice(&mut values, &[4]).unwrap();
    let error = normal_fill(&mut view, Stream::new(0, 0), 0, -0.5)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "random: `std` is -0.5, expected a number that is 0 or more"
    );
}
