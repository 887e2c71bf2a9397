//! One deviate at a time, by the method of Box and Muller.

use super::Stream;

/// Number `index` of the stream, as a normal deviate of standard deviation `std`.
pub(crate) fn normal(stream: Stream, index: u64, std: f64) -> f64 {
    let block = stream.block(index / 4);
    let pair = if index % 4 < 2 {
        &block[..2]
    } else {
        &block[2..]
    };
    let unit = |bits: u32| (f64::from(bits) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * unit(pair[0]).ln()).sqrt();
    let angle = 2.0 * std::f64::consts::PI * unit(pair[1]);
    let deviate = if index.is_multiple_of(2) {
        radius * angle.cos()
    } else {
        radius * angle.sin()
    };
    deviate * std
}
