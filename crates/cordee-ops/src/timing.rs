//! Where the time goes, and what is done in it: a stopwatch of each thread, by operator and pass.
//!
//! It is off unless [`start`] was called on the thread that calls the operators; off, it costs them
//! one look at a thread-local flag. Work of a GPU is waited for at both ends of a call, or else only
//! the asking for it would be timed: steps take longer while the stopwatch is on.

use std::{
    cell::{Cell, RefCell},
    ops::AddAssign,
    time::{Duration, Instant},
};

use cordee_memory::DType;

use crate::Device;

/// What part of a step a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// From inputs to outputs.
    Forward,
    /// From gradients of outputs to those of inputs and parameters. The head's loss with its
    /// gradient, which is both in one, counts here.
    Backward,
    /// After all gradients are there: their norm, and the optimizer.
    Update,
}

impl Pass {
    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
            Self::Update => "update",
        }
    }
}

/// What calls cannot do with less of, on any machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Operations of products of matrices; a multiplication and an addition are two.
    pub flops: f64,
    /// Bytes of memory that have to be read or written: operands once, and results, but nothing that
    /// could stay on the chip.
    pub bytes: f64,
}

impl Work {
    /// Of a product of `rows` x `inner` with `inner` x `columns`, its operations alone.
    pub(crate) fn product([rows, inner, columns]: [usize; 3]) -> Self {
        Self::flops(2.0 * rows as f64 * inner as f64 * columns as f64)
    }

    pub(crate) fn flops(flops: f64) -> Self {
        Self { flops, bytes: 0.0 }
    }

    /// The same, and `elements` of `dtype` that are read or written.
    pub(crate) fn moving(mut self, elements: usize, dtype: DType) -> Self {
        self.bytes += elements as f64 * dtype.size_in_bytes() as f64;
        self
    }

    /// `elements` of `dtype` that are read or written, and no product.
    pub(crate) fn moved(elements: usize, dtype: DType) -> Self {
        Self::default().moving(elements, dtype)
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.flops += other.flops;
        self.bytes += other.bytes;
    }
}

/// The calls of one operator in one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Name of the operator.
    pub operator: &'static str,
    /// The pass.
    pub pass: Pass,
    /// How often it was called.
    pub calls: u64,
    /// Wall time of all calls together.
    pub seconds: f64,
    /// What all of them did at least.
    pub work: Work,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Off,
    /// On, outside of any operator.
    Ready,
    /// On, inside an operator: what it calls is part of it.
    Inside,
}

thread_local! {
    static DEVICE: RefCell<Device> = const { RefCell::new(Device::HOST) };
    static STATE: Cell<State> = const { Cell::new(State::Off) };
    static TOTALS: RefCell<Vec<Total>> = const { RefCell::new(Vec::new()) };
}

struct Total {
    operator: &'static str,
    pass: Pass,
    calls: u64,
    time: Duration,
    work: Work,
}

/// Starts the stopwatch of this thread from nothing; operators compute on `device`.
pub fn start(device: &Device) {
    TOTALS.take();
    DEVICE.replace(device.clone());
    STATE.set(State::Ready);
}

/// Stops it, and returns what was called since [`start`], in the order of the first calls. Empty
/// where it was not started.
pub fn take() -> Vec<Entry> {
    STATE.set(State::Off);
    DEVICE.replace(Device::HOST);
    let entry = |total: Total| Entry {
        operator: total.operator,
        pass: total.pass,
        calls: total.calls,
        seconds: total.time.as_secs_f64(),
        work: total.work,
    };
    TOTALS.take().into_iter().map(entry).collect()
}

/// Times a call until it is dropped.
#[must_use]
pub(crate) struct Scope {
    operator: &'static str,
    pass: Pass,
    started: Option<Instant>,
    work: Work,
}

/// Begins the time of a call, unless the stopwatch is off or another call has begun.
#[inline]
pub(crate) fn scope(operator: &'static str, pass: Pass) -> Scope {
    let started = (STATE.get() == State::Ready).then(|| {
        STATE.set(State::Inside);
        settle();
        Instant::now()
    });
    Scope {
        operator,
        pass,
        started,
        work: Work::default(),
    }
}

/// Waits for the device. Its failures are told by the next operator that asks something of it.
fn settle() {
    DEVICE.with_borrow(|device| drop(device.synchronise()));
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        if let Some(started) = self.started {
            settle();
            self.add(started.elapsed());
            STATE.set(State::Ready);
        }
    }
}

impl Scope {
    /// Whether it is on: whether anybody will be told.
    #[inline]
    pub(crate) fn runs(&self) -> bool {
        self.started.is_some()
    }

    /// What the call does at least. Of calls within it nothing is counted.
    #[inline]
    pub(crate) fn does(&mut self, work: Work) {
        self.work += work;
    }

    fn add(&self, time: Duration) {
        TOTALS.with_borrow_mut(|totals| {
            let same =
                |total: &&mut Total| (total.operator, total.pass) == (self.operator, self.pass);
            match totals.iter_mut().find(same) {
                Some(total) => {
                    total.calls += 1;
                    total.time += time;
                    total.work += self.work;
                }
                None => totals.push(Total {
                    operator: self.operator,
                    pass: self.pass,
                    calls: 1,
                    time,
                    work: self.work,
                }),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{thread::sleep, time::Duration};

    use cordee_memory::DType;

    use super::{Pass, Work, scope, start, take};
    use crate::Device;

    #[test]
    fn calls_are_counted_for_the_outermost() {
        let outer = || {
            let mut timed = scope("outer", Pass::Forward);
            timed.does(Work::product([2, 3, 5]).moving(7, DType::F32));
            let mut nested = scope("inner", Pass::Forward);
            nested.does(Work::moved(100, DType::F32));
            sleep(Duration::from_millis(2));
        };
        outer();
        start(&Device::HOST);
        outer();
        outer();
        drop(scope("inner", Pass::Backward));
        let entries = take();
        let counted: Vec<_> = entries
            .iter()
            .map(|e| (e.operator, e.pass, e.calls))
            .collect();
        let expected = [("outer", Pass::Forward, 2), ("inner", Pass::Backward, 1)];
        assert_eq!(counted, expected);
        assert!((0.004..1.0).contains(&entries[0].seconds), "{entries:?}");
        let twice = Work {
            flops: 2.0 * 60.0,
            bytes: 2.0 * 28.0,
        };
        assert_eq!(entries[0].work, twice);
        outer();
        assert!(take().is_empty(), "it went on after it was stopped");
    }

    #[test]
    fn each_start_begins_from_nothing() {
        start(&Device::HOST);
        drop(scope("first", Pass::Forward));
        start(&Device::HOST);
        drop(scope("second", Pass::Update));
        let entries = take();
        assert_eq!((entries.len(), entries[0].operator), (1, "second"));
    }
}
