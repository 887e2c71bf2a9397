//! The numbers that a step adds up where its gradients lie, so that nothing waits for them until all
//! of the step is under way.

use cordee_comm::ProcessGroup;
use cordee_memory::{Buffer, DType, Layout, View, ViewMut};
use cordee_ops::{Device, gradient_norm};

use crate::TrainError;

/// Numbers in `f64`.
#[derive(Debug)]
pub(crate) struct Sums {
    layout: Layout,
    buffer: Buffer,
}

/// The numbers; of each kind one, `[1]`, but of squares.
pub(crate) struct SumViews<'a> {
    /// Sum of the negative log-likelihoods of the trained tokens, in nats.
    pub(crate) nll: ViewMut<'a>,
    /// Sums of the squares of the parts of the gradient, `[parts]`.
    pub(crate) squares: ViewMut<'a>,
    /// Their sum.
    pub(crate) total: ViewMut<'a>,
    /// What the update multiplies the gradient by.
    pub(crate) scale: ViewMut<'a>,
}

const SQUARES: usize = 1;
const TOTAL: usize = 2;

impl Sums {
    /// All of them zero, for a gradient of so many parts.
    pub(crate) fn new(device: &Device, parts: usize) -> Result<Self, TrainError> {
        let names = [("nll", 1), ("squares", parts), ("total", 1), ("scale", 1)];
        let tensors = names.map(|(name, len)| (name.to_owned(), vec![len]));
        let layout = Layout::new(DType::F64, tensors)?;
        let buffer = device.zeroed(DType::F64, layout.len())?;
        Ok(Self { layout, buffer })
    }

    /// Sets them to zero.
    pub(crate) fn clear(&mut self) -> Result<(), TrainError> {
        Ok(self.buffer.fill_zero()?)
    }

    /// The numbers, to write.
    pub(crate) fn views(&mut self) -> Result<SumViews<'_>, TrainError> {
        let views = self.buffer.views_mut(self.layout.slots())?;
        let [nll, squares, total, scale] = views.try_into().expect("the layout has four tensors");
        Ok(SumViews {
            nll,
            squares,
            total,
            scale,
        })
    }

    /// Writes the sum of the squares of `values` to the place of one part.
    pub(crate) fn square_part(&mut self, part: usize, values: View<'_>) -> Result<(), TrainError> {
        if values.is_empty() {
            return Ok(());
        }
        let place = self.layout.slot(SQUARES).offset() + part;
        let mut sum = self.buffer.view_mut(place..place + 1, &[1])?;
        Ok(gradient_norm::sum_of_squares(values, &mut sum)?)
    }

    /// Puts together what ranks have squared, each its own parts: those of others are zero, and adding
    /// zero changes no bit.
    pub(crate) fn exchange_parts(
        &mut self,
        group: &mut dyn ProcessGroup,
    ) -> Result<(), TrainError> {
        group.all_reduce(&mut self.buffer, self.layout.slot(SQUARES).range())?;
        Ok(group.fence()?)
    }

    /// The sum of losses and that of squares; waits until they are there.
    pub(crate) fn read(&self) -> Result<[f64; 2], TrainError> {
        let len = self.buffer.len();
        let numbers = self.buffer.view(0..len, &[len])?.to_vec::<f64>()?;
        Ok([0, TOTAL].map(|index| numbers[self.layout.slot(index).offset()]))
    }

    /// The sum of the squares of all elements: 0 where all are, not finite where one is not. The sums
    /// of the gradient are lost.
    pub(crate) fn squares_of(&mut self, values: View<'_>) -> Result<f64, TrainError> {
        gradient_norm::sum_of_squares(values, &mut self.views()?.total)?;
        let [_, squares] = self.read()?;
        Ok(squares)
    }
}
