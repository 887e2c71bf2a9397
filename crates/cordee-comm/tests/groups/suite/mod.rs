//! One suite for every backend: bodies that each rank of a world runs, and that check the result
//! on every rank. A backend's test file says how the ranks of a world are made.

pub(crate) mod numbers;

mod buffers;
mod scalars;

use cordee_comm::ProcessGroup;

/// What a rank does.
pub(crate) type Body = fn(&mut dyn ProcessGroup);

/// Every body, by a name that can be handed to another process.
pub(crate) const BODIES: [(&str, Body); 9] = [
    ("all_reduce", buffers::all_reduce),
    ("reduce_scatter", buffers::reduce_scatter),
    ("all_gather", buffers::all_gather),
    ("broadcast", buffers::broadcast),
    ("parts_of_a_buffer", buffers::parts_of_a_buffer),
    (
        "buckets_sent_to_a_thread",
        buffers::buckets_sent_to_a_thread,
    ),
    ("sum_scalars", scalars::sum_scalars),
    ("gather_bytes", scalars::gather_bytes),
    ("late_ranks", scalars::late_ranks),
];

/// The body called `name`.
pub(crate) fn body(name: &str) -> Body {
    BODIES
        .iter()
        .find(|(candidate, _)| *candidate == name)
        .expect("a body of the suite")
        .1
}
