//! What every process group has to do, as cases that all ranks run together, on any transport and any
//! device, wherever training will run. `cordee verify collectives` shows them; tests run them too.
//!
//! Each rank can compute what every other gives, so that results are compared to the bit.

mod buffers;
mod numbers;
mod scalars;

use cordee_memory::{Buffer, DType, MemoryError};

use crate::{CommError, ProcessGroup};
use numbers::Number;

/// Where the cases' buffers lie, and what may be expected of sums.
pub struct Setting<'a> {
    /// Makes a buffer of zeros of this rank's own, on the heap or on a device.
    pub make: &'a (dyn Fn(DType, usize) -> std::result::Result<Buffer, MemoryError> + Sync),
    /// Whether ranks are added in ascending order, as on the host. Where they are not, what is summed
    /// is small whole numbers, whose sums are exact in any order (of up to 32 ranks in bf16).
    pub in_rank_order: bool,
}

impl Setting<'static> {
    /// Buffers of the heap, and those that the group allocates.
    pub const HOST: Self = Self {
        make: &Buffer::zeroed,
        in_rank_order: true,
    };
}

/// A case could not be brought to its end; the group is of no use afterwards.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A call failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// Memory could not be had, written or read.
    #[error("{0}")]
    Memory(#[from] MemoryError),
}

type Done = std::result::Result<(), CaseError>;

/// Some collective calls, and what must come of them.
#[derive(Clone, Copy)]
pub struct Case {
    /// The call, or what is done with several.
    pub name: &'static str,
    /// Type of the elements, where there are some.
    pub dtype: Option<DType>,
    body: fn(&mut Bench<'_, '_>) -> Done,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Case({}, {:?})", self.name, self.dtype)
    }
}

impl Case {
    /// Runs it; every rank of the group does. `None`, or what was wrong on the first of the ranks
    /// where something was: the same on all.
    pub fn run(
        &self,
        group: &mut dyn ProcessGroup,
        setting: &Setting<'_>,
    ) -> std::result::Result<Option<String>, CaseError> {
        let mut bench = Bench {
            group,
            setting,
            wrong: None,
        };
        if let Err(error) = (self.body)(&mut bench) {
            bench.group.fail(&error.to_string());
            return Err(error);
        }
        let wrong = bench.wrong.unwrap_or_default();
        let all = group.gather_bytes(wrong.as_bytes())?;
        let first = all.iter().enumerate().find(|(_, text)| !text.is_empty());
        Ok(first.map(|(rank, text)| format!("rank {rank}: {}", String::from_utf8_lossy(text))))
    }
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    macro_rules! of_each_type {
        ($($name:literal = $body:ident),*) => {
            $(cases.extend([
                Case { name: $name, dtype: Some(DType::F32), body: buffers::$body::<f32> },
                Case { name: $name, dtype: Some(DType::F64), body: buffers::$body::<f64> },
                Case { name: $name, dtype: Some(DType::Bf16), body: buffers::$body::<half::bf16> },
            ]);)*
        };
    }
    of_each_type!(
        "all_reduce" = all_reduce,
        "reduce_scatter" = reduce_scatter,
        "all_gather" = all_gather,
        "broadcast" = broadcast,
        "parts of a buffer" = parts_of_a_buffer,
        "many buffers at once" = many_buffers_at_once,
        "a fence alone" = a_fence_alone,
        "buckets sent to a thread" = buckets_sent_to_a_thread
    );
    let of_values = |name, body| Case {
        name,
        dtype: None,
        body,
    };
    cases.extend([
        of_values("sum_scalars", scalars::sum_scalars),
        of_values("gather_bytes", scalars::gather_bytes),
        of_values("late ranks", scalars::late_ranks),
    ]);
    cases
}

/// A rank at work on a case.
struct Bench<'g, 's> {
    group: &'g mut dyn ProcessGroup,
    setting: &'s Setting<'s>,
    /// The first thing that was wrong. A rank goes on, since the others do.
    wrong: Option<String>,
}

impl Bench<'_, '_> {
    fn make<T: Number>(&self, len: usize) -> std::result::Result<Buffer, CaseError> {
        Ok((self.setting.make)(T::DTYPE, len)?)
    }

    /// What `rank` gives for element `index`.
    fn value<T: Number>(&self, rank: usize, index: usize) -> T {
        numbers::value(self.setting.in_rank_order, rank, index)
    }

    /// Rank 0 plus rank 1 plus rank 2 and so on.
    fn sum<T: Number>(&self, index: usize) -> T {
        let rest = 1..self.group.world_size();
        rest.fold(self.value(0, index), |sum, rank| {
            sum + self.value(rank, index)
        })
    }

    /// Writes what this rank gives.
    fn fill_own<T: Number>(&self, buffer: &mut Buffer) -> Done {
        let rank = self.group.rank();
        fill::<T>(buffer, |index| self.value(rank, index))
    }

    /// Compares elements of a buffer that is done with, to the bit.
    fn expect<T: Number>(
        &mut self,
        what: &str,
        buffer: &Buffer,
        range: std::ops::Range<usize>,
        expected: impl Fn(&Self, usize) -> T,
    ) -> Done {
        let host = buffer.to_host()?;
        let found = host.as_slice::<T>()?;
        let mut differing = range.clone().filter_map(|index| {
            let expected = expected(self, index);
            (found[index].bits() != expected.bits()).then_some((index, found[index], expected))
        });
        if let Some((index, found, expected)) = differing.next() {
            let more = differing.count();
            self.wrong.get_or_insert(format!(
                "{what} of {} elements: element {index} is {found:?} where {expected:?} is expected, and {more} others \
                 of {range:?} are wrong",
                buffer.len()
            ));
        }
        Ok(())
    }

    /// Notes what is wrong unless `right`.
    fn expect_that(&mut self, right: bool, otherwise: impl FnOnce() -> String) {
        if !right {
            self.wrong.get_or_insert_with(otherwise);
        }
    }
}

/// Writes `element` of each index to a buffer.
fn fill<T: Number>(buffer: &mut Buffer, element: impl Fn(usize) -> T) -> Done {
    let mut host = Buffer::zeroed(T::DTYPE, buffer.len())?;
    for (index, target) in host.as_mut_slice::<T>()?.iter_mut().enumerate() {
        *target = element(index);
    }
    Ok(buffer.copy_from_host(&host)?)
}
