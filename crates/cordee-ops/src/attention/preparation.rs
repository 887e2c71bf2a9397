//! What takes long to make for a layer is made beside the start of a run, and not when its first step
//! waits for it: cuDNN takes half a second to load its parts, and a third for each plan.

use std::thread::JoinHandle;

use cordee_memory::DType;

use crate::Device;

/// The attention of a layer, whatever the sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    /// Of the queries.
    pub heads: usize,
    /// Of keys and of values; a divisor of `heads`.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// As in [`Inputs`](super::Inputs).
    pub scale: f64,
    /// As in [`Inputs`](super::Inputs).
    pub window: Option<usize>,
    /// Elements from one token to the next of queries, keys and values.
    pub strides: [usize; 3],
}

/// Preparations under way, in a thread. It is waited for when this is dropped, since a process that ends
/// takes the libraries down that the thread is in.
#[derive(Debug, Default)]
pub struct Preparation(Option<JoinHandle<()>>);

impl Drop for Preparation {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // What went wrong there goes wrong again, and is told, where it is asked for.
            let _ = thread.join();
        }
    }
}

/// Has what is worth it made for forwards and backwards of `layers` on a device, in `numbers`, of so many
/// sequences of so many tokens each. Returns at once; a call that needs what is being made waits for it.
pub fn prepare(
    device: &Device,
    layers: Vec<Layer>,
    numbers: DType,
    sequences: [usize; 2],
) -> Preparation {
    #[cfg(feature = "cudnn")]
    if let (Some(gpu), DType::Bf16) = (device.as_gpu(), numbers) {
        let gpu = gpu.clone();
        let plans = move || {
            for layer in layers {
                if super::cudnn::plan(&gpu, &layer, sequences).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("preparation".to_owned());
        return Preparation(thread.spawn(plans).ok());
    }
    #[cfg(not(feature = "cudnn"))]
    let _ = (device, layers, numbers, sequences);
    Preparation::default()
}
