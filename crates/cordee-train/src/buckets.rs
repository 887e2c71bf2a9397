//! Sums of gradients, in buckets: what is summed over ranks at once.
//!
//! A bucket holds the parameters of one segment or of several neighbours, and is complete when the
//! backward of the first of them has ended, backwards running from the last segment to the first. It
//! is a buffer of its own, so that ranks can sum it while others are still written.

use std::ops::Range;

use cordee_comm::ProcessGroup;
use cordee_memory::{Buffer, DType, Layout, Slot, View, ViewMut};
use cordee_model::Model;
use cordee_ops::Device;

use crate::TrainError;

/// The gradients of a model.
#[derive(Debug)]
pub struct Buckets {
    buckets: Vec<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    /// The segment whose backward completes it.
    first_segment: usize,
    /// Its parameters, by their numbers in the model.
    ids: Range<usize>,
    /// Its elements in the layout of all parameters.
    range: Range<usize>,
    /// Where its parameters lie in its buffer.
    layout: Layout,
    /// Absent while others sum it.
    buffer: Option<Buffer>,
}

/// What a bucket is of, before there is memory for it.
pub(crate) struct BucketPlan {
    first_segment: usize,
    ids: Range<usize>,
    /// Its elements in the layout of all parameters.
    pub(crate) range: Range<usize>,
}

/// Deals `model`, whose parameters lie as in `layout`, out to buckets, in that order. From the last
/// segment on, a bucket takes segments until it has `least` bytes. The embedding is by itself: no
/// backward is left to hide its sums behind, and what came before need not wait for it.
pub(crate) fn plan(model: &Model, layout: &Layout, least: u64) -> Vec<BucketPlan> {
    let offset = |id: usize| {
        let slots = layout.slots();
        slots.get(id).map_or(layout.len(), Slot::offset)
    };
    let width = layout.dtype().size_in_bytes();
    let mut buckets = Vec::new();
    let mut end = layout.slots().len();
    for segment in (0..model.segments()).rev() {
        let first = model.first_id(segment);
        let range = offset(first)..offset(end);
        let full = (range.len() * width) as u64 >= least;
        if first < end && (full || segment <= 1) {
            buckets.push(BucketPlan {
                first_segment: segment,
                ids: first..end,
                range,
            });
            end = first;
        }
    }
    buckets.reverse();
    buckets
}

impl Buckets {
    /// Memory for the gradients of `model`, all zero: of `device`, or of the host where other ranks of
    /// `group` reach it.
    pub(crate) fn new(
        model: &Model,
        layout: &Layout,
        least: u64,
        device: &Device,
        group: &mut dyn ProcessGroup,
    ) -> Result<Self, TrainError> {
        let bucket = |plan: BucketPlan| {
            let slots = layout.slots()[plan.ids.clone()].iter();
            let tensors = slots.map(|slot| (slot.name().to_owned(), slot.shape().to_vec()));
            let own = Layout::new(layout.dtype(), tensors)?;
            let buffer = if device.facts().is_none() {
                group.allocate(DType::F32, own.len())?
            } else {
                device.zeroed(DType::F32, own.len())?
            };
            Ok(Bucket {
                first_segment: plan.first_segment,
                ids: plan.ids,
                range: plan.range,
                layout: own,
                buffer: Some(buffer),
            })
        };
        let planned = plan(model, layout, least).into_iter();
        let buckets = planned.map(bucket).collect::<Result<_, TrainError>>()?;
        Ok(Self { buckets })
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.buckets.len()
    }

    /// The elements of each in the layout of all parameters; together they are all of it.
    pub(crate) fn ranges(&self) -> impl DoubleEndedIterator<Item = Range<usize>> {
        self.buckets.iter().map(|bucket| bucket.range.clone())
    }

    /// The gradients of the parameters `ids`, in that order, to write.
    pub(crate) fn lend(&mut self, ids: &[usize]) -> Result<Vec<ViewMut<'_>>, TrainError> {
        let mut lent = Vec::with_capacity(ids.len());
        for bucket in &mut self.buckets {
            let places = |(place, &id)| bucket.ids.contains(&id).then_some((place, id));
            let wanted: Vec<(usize, usize)> = ids.iter().enumerate().filter_map(places).collect();
            if wanted.is_empty() {
                continue;
            }
            let first = bucket.ids.start;
            let slots = wanted.iter().map(|(_, id)| bucket.layout.slot(id - first));
            let buffer = bucket.buffer.as_mut().expect(TAKEN);
            let views = buffer.views_mut(slots)?;
            lent.extend(wanted.iter().map(|(place, _)| *place).zip(views));
        }
        lent.sort_by_key(|(place, _)| *place);
        Ok(lent.into_iter().map(|(_, view)| view).collect())
    }

    /// The bucket that is complete once the backward of `segment` has ended.
    pub(crate) fn completed_by(&self, segment: usize) -> Option<usize> {
        self.buckets
            .iter()
            .position(|bucket| bucket.first_segment == segment)
    }

    /// Whether they are in memory of a device.
    pub(crate) fn are_on_device(&self) -> bool {
        let first = self.buckets.first().and_then(|first| first.buffer.as_ref());
        first.is_some_and(Buffer::is_on_device)
    }

    /// The memory of a bucket, for ranks to sum.
    pub(crate) fn buffer_mut(&mut self, bucket: usize) -> &mut Buffer {
        self.buckets[bucket].buffer.as_mut().expect(TAKEN)
    }

    /// The memory of a bucket, for another thread; to be [put](Self::put) back.
    pub(crate) fn take(&mut self, bucket: usize) -> Buffer {
        self.buckets[bucket].buffer.take().expect(TAKEN)
    }

    pub(crate) fn put(&mut self, bucket: usize, buffer: Buffer) {
        self.buckets[bucket].buffer = Some(buffer);
    }

    /// Elements of a bucket, counted as in the layout of all parameters.
    pub(crate) fn view(&self, bucket: usize, range: Range<usize>) -> Result<View<'_>, TrainError> {
        let bucket = &self.buckets[bucket];
        let buffer = bucket.buffer.as_ref().expect(TAKEN);
        let (start, len) = (range.start - bucket.range.start, range.len());
        Ok(buffer.view(start..start + len, &[len])?)
    }
}

const TAKEN: &str = "a bucket is put back before anybody asks for it";

#[cfg(test)]
mod tests {
    use cordee_config::ModelConfig;

    use super::*;

    fn segments(tied: bool, least: u64) -> Vec<(usize, Range<usize>)> {
        let config = ModelConfig {
            tie_embeddings: tied,
            init_std: 0.1,
            ..ModelConfig::llama(64, 4, 2, 128)
        };
        let model = Model::new(&config, 256, 4).unwrap();
        let layout = model.layout(DType::F32).unwrap();
        let buckets = plan(&model, &layout, least);
        let mut end = 0;
        for bucket in &buckets {
            assert_eq!(bucket.range.start, end, "neighbours");
            end = bucket.range.end;
        }
        assert_eq!(end, layout.len(), "all of it");
        let mut ends = buckets.iter().map(|bucket| bucket.ids.end);
        assert_eq!(ends.next_back(), Some(layout.slots().len()));
        let parts = |bucket: BucketPlan| (bucket.first_segment, bucket.ids);
        buckets.into_iter().map(parts).collect()
    }

    #[test]
    fn buckets_fill_from_the_last_segment_on() {
        // An embedding, four blocks of nine parameters, and a head of two.
        let each = [
            (0, 0..1),
            (1, 1..10),
            (2, 10..19),
            (3, 19..28),
            (4, 28..37),
            (5, 37..39),
        ];
        assert_eq!(segments(false, 1), each);
        assert_eq!(segments(false, 1 << 30), [(0, 0..1), (1, 1..39)]);
        // A tied head is a norm, which fills no bucket; a block has a little more than 160 KiB.
        let pairs = [(0, 0..1), (1, 1..19), (3, 19..38)];
        assert_eq!(segments(true, 200 << 10), pairs);
    }
}
