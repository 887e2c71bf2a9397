//! The numbers that a step adds up where its gradients lie, so that nothing waits for them until all
//! of the step is under way.

use cordee_memory::{Buffer, DType, Layout, View, ViewMut};
use cordee_ops::{Device, gradient_norm};

use crate::TrainError;

/// Three numbers in `f64`.
#[derive(Debug)]
pub(crate) struct Sums {
    layout: Layout,
    buffer: Buffer,
}

/// The numbers, each `[1]`.
pub(crate) struct SumViews<'a> {
    /// Sum of the negative log-likelihoods of the trained tokens, in nats.
    pub(crate) nll: ViewMut<'a>,
    /// Sum of the squares of the gradient.
    pub(crate) squares: ViewMut<'a>,
    /// What the update multiplies the gradient by.
    pub(crate) scale: ViewMut<'a>,
}

impl Sums {
    /// All of them zero.
    pub(crate) fn new(device: &Device) -> Result<Self, TrainError> {
        let names = ["nll", "squares", "scale"];
        let layout = Layout::new(DType::F64, names.map(|name| (name.to_owned(), vec![1])))?;
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
        let [nll, squares, scale] = views.try_into().expect("the layout has three tensors");
        Ok(SumViews {
            nll,
            squares,
            scale,
        })
    }

    /// The sum of losses and that of squares; waits until they are there.
    pub(crate) fn read(&self) -> Result<[f64; 2], TrainError> {
        let len = self.buffer.len();
        let numbers = self.buffer.view(0..len, &[len])?.to_vec::<f64>()?;
        Ok([0, 1].map(|index| numbers[self.layout.slot(index).offset()]))
    }

    /// The sum of the squares of all elements: 0 where all are, not finite where one is not. That of
    /// the gradient is another one after this.
    pub(crate) fn squares_of(&mut self, values: View<'_>) -> Result<f64, TrainError> {
        gradient_norm::sum_of_squares(values, &mut self.views()?.squares)?;
        let [_, squares] = self.read()?;
        Ok(squares)
    }
}
