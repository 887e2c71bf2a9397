//! When buckets of gradients are summed over ranks.

use std::{
    sync::mpsc::{self, Sender},
    thread,
    time::Instant,
};

use cordee_comm::ProcessGroup;
use cordee_memory::Buffer;

use crate::{TrainError, buckets::Buckets};

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// As soon as a bucket is complete, while the backward goes on.
    During,
    /// All of them after the backward.
    After,
    /// Not at all: what a step takes without.
    Never,
}

/// How a step's gradients are summed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    pub(crate) when: When,
    /// Whether each rank gets the sums of its own shard alone.
    pub(crate) scatter: bool,
}

/// Told of each segment whose backward has ended.
pub(crate) type Ended<'e> = dyn FnMut(&mut Buckets, usize) -> Result<(), TrainError> + 'e;

impl Reduction {
    /// Runs `backward`, which completes `buckets`, and sums these over the ranks of `group`. Returns
    /// what `backward` returned, and for how many seconds it was over before the sums were.
    ///
    /// On the host a thread sums what is complete. A device has a queue for it, which this thread
    /// fills; what the device is given afterwards comes after the sums.
    pub(crate) fn around<T>(
        self,
        buckets: &mut Buckets,
        group: &mut dyn ProcessGroup,
        backward: impl FnOnce(&mut Buckets, &mut Ended<'_>) -> Result<T, TrainError>,
    ) -> Result<(T, f64), TrainError> {
        let alone = group.world_size() == 1 || self.when == When::Never;
        if alone || self.when == When::After {
            let result = backward(buckets, &mut |_, _| Ok(()))?;
            let started = Instant::now();
            if !alone {
                self.all(buckets, group)?;
            }
            return Ok((result, started.elapsed().as_secs_f64()));
        }
        if buckets.are_on_device() {
            let result = backward(buckets, &mut |buckets, segment| {
                let Some(bucket) = buckets.completed_by(segment) else {
                    return Ok(());
                };
                self.one(buckets.buffer_mut(bucket), group)
            })?;
            let started = Instant::now();
            group.fence()?;
            return Ok((result, started.elapsed().as_secs_f64()));
        }
        self.beside(buckets, group, backward)
    }

    /// Sums all buckets, in the order in which backwards complete them.
    pub(crate) fn all(
        self,
        buckets: &mut Buckets,
        group: &mut dyn ProcessGroup,
    ) -> Result<(), TrainError> {
        for bucket in (0..buckets.len()).rev() {
            self.one(buckets.buffer_mut(bucket), group)?;
        }
        Ok(group.fence()?)
    }

    fn one(self, buffer: &mut Buffer, group: &mut dyn ProcessGroup) -> Result<(), TrainError> {
        let all = 0..buffer.len();
        if self.scatter {
            group.reduce_scatter(buffer, all)?;
        } else {
            group.all_reduce(buffer, all)?;
        }
        Ok(())
    }

    /// Sums complete buckets on a thread beside the backward.
    fn beside<T>(
        self,
        buckets: &mut Buckets,
        group: &mut dyn ProcessGroup,
        backward: impl FnOnce(&mut Buckets, &mut Ended<'_>) -> Result<T, TrainError>,
    ) -> Result<(T, f64), TrainError> {
        thread::scope(|scope| {
            let (complete, work) = mpsc::channel::<(usize, Buffer)>();
            let summing = scope.spawn(move || {
                let mut summed = Vec::new();
                for (bucket, mut buffer) in work {
                    self.one(&mut buffer, group)?;
                    summed.push((bucket, buffer));
                }
                Ok::<_, TrainError>(summed)
            });
            let result = backward(buckets, &mut |buckets, segment| {
                hand_over(buckets, segment, &complete);
                Ok(())
            });
            // The thread ends when no more can come.
            drop(complete);
            let started = Instant::now();
            let summed = summing.join().expect("sums do not panic");
            let seconds = started.elapsed().as_secs_f64();
            // An error of this rank's backward comes before those that its peers have of it.
            let result = result?;
            for (bucket, buffer) in summed? {
                buckets.put(bucket, buffer);
            }
            Ok((result, seconds))
        })
    }
}

/// Gives the bucket that the backward of `segment` has completed, if there is one, to be summed.
fn hand_over(buckets: &mut Buckets, segment: usize, complete: &Sender<(usize, Buffer)>) {
    if let Some(bucket) = buckets.completed_by(segment) {
        // Nobody listens after an error, which joining the thread tells.
        let _ = complete.send((bucket, buckets.take(bucket)));
    }
}
