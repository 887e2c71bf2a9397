//! How fast a device multiplies and moves memory, and whether its products are right.

use std::time::{Duration, Instant};

use cordee_memory::{Buffer, DType, View};
use cordee_ops::{
    Device, linear,
    random::{Stream, normal_fill},
    transfer,
};
use cordee_protocol::Check;
use half::bf16;

use crate::Result;

/// How large things are.
#[derive(Clone, Copy, Debug)]
pub struct DeviceBench {
    /// Rows and columns of the matrices whose product is timed.
    pub size: usize,
    /// Bytes of what is copied.
    pub bytes: usize,
    /// How long each thing is measured, at least.
    pub time: Duration,
}

/// Rows and columns of the product that is compared with whole numbers.
const EXACT: usize = 192;

/// Calls after which a device is waited for.
const AT_ONCE: usize = 8;

impl DeviceBench {
    /// For a device: a second of its time, more or less.
    pub fn of(device: &Device) -> Self {
        if device.facts().is_some() {
            Self {
                size: 8192,
                bytes: 1 << 30,
                time: Duration::from_millis(500),
            }
        } else {
            Self {
                size: 768,
                bytes: 64 << 20,
                time: Duration::from_millis(250),
            }
        }
    }

    /// The figure of one check, in its unit.
    ///
    /// # Errors
    ///
    /// [`SmokeError::Op`](crate::SmokeError::Op) and [`Memory`](crate::SmokeError::Memory): the device
    /// refused.
    ///
    /// # Panics
    ///
    /// For a check that is none of [`Check::OF_GPU`].
    pub fn measure(&self, device: &Device, check: Check) -> Result<f64> {
        match check {
            Check::Products => {
                let wrong = wrong_numbers(device, DType::F32)?;
                let in_bf16 = match device.facts() {
                    Some(_) => wrong_numbers(device, DType::Bf16)?,
                    None => 0,
                };
                Ok((wrong + in_bf16) as f64)
            }
            Check::MatmulF32 => self.product_rate(device, DType::F32),
            Check::MatmulBf16 => self.product_rate(device, DType::Bf16),
            Check::MemoryBandwidth => self.memory_bandwidth(device),
            Check::CopyToGpu => {
                let source = Buffer::zeroed(DType::F32, self.bytes / 4)?;
                let mut target = device.zeroed(DType::F32, source.len())?;
                self.rate(device, self.bytes, &mut || {
                    Ok(target.copy_from_host(&source)?)
                })
            }
            Check::CopyFromGpu => {
                let source = device.zeroed(DType::F32, self.bytes / 4)?;
                let mut target = Buffer::zeroed(DType::F32, source.len())?;
                self.rate(device, self.bytes, &mut || {
                    Ok(source.copy_to_host(&mut target)?)
                })
            }
            _ => panic!("{check} is not about a device"),
        }
    }

    /// 10¹² floating-point operations a second, counting a multiplication and an addition as two.
    fn product_rate(&self, device: &Device, dtype: DType) -> Result<f64> {
        let size = match dtype {
            // So that both take about as long.
            DType::F32 if device.facts().is_some() => self.size / 2,
            _ => self.size,
        };
        let numbers = normals(size * size)?;
        let x = on_device(device, dtype, &numbers)?;
        let x = transfer::to_tensor(square(&x, size)?)?;
        let weight = on_device(device, dtype, &numbers)?;
        let operations = 2.0 * (size as f64).powi(3);
        let rate = self.rate(device, 1, &mut || {
            linear::forward(&x, square(&weight, size)?, None, None)?;
            Ok(())
        })?;
        // `rate` counted calls as bytes of 10⁹.
        Ok(rate * 1e9 * operations / 1e12)
    }

    /// 10⁹ bytes a second, each byte of a copy counted when it is read and when it is written.
    fn memory_bandwidth(&self, device: &Device) -> Result<f64> {
        let mut source = device.zeroed(DType::F32, self.bytes / 4)?;
        if source.is_on_device() {
            return self.rate(device, 2 * self.bytes, &mut || {
                transfer::to_tensor(source.view(0..source.len(), &[source.len()])?)?;
                Ok(())
            });
        }
        // Pages that were never written are all the same one.
        source.as_mut_slice::<f32>()?.fill(1.0);
        let mut target = Buffer::zeroed(DType::F32, source.len())?;
        self.rate(device, 2 * self.bytes, &mut || {
            Ok(target.copy_from_host(&source)?)
        })
    }

    /// 10⁹ bytes a second of calls that move `bytes` each. What is made ready at the first is not
    /// counted.
    fn rate(
        &self,
        device: &Device,
        bytes: usize,
        call: &mut dyn FnMut() -> Result<()>,
    ) -> Result<f64> {
        call()?;
        device.synchronise()?;
        let (started, mut calls) = (Instant::now(), 0_usize);
        while started.elapsed() < self.time {
            let at_once = if device.facts().is_some() { AT_ONCE } else { 1 };
            for _ in 0..at_once {
                call()?;
            }
            device.synchronise()?;
            calls += at_once;
        }
        Ok((calls * bytes) as f64 / started.elapsed().as_secs_f64() / 1e9)
    }
}

/// How many numbers of a product of whole numbers are not what they are in exact arithmetic. Sums stay
/// below 2⁸ with few exceptions, which bf16 holds to a half in a hundred.
fn wrong_numbers(device: &Device, dtype: DType) -> Result<usize> {
    let digit = |index: usize, salt: usize| {
        let mixed = (index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ salt) >> 40;
        (mixed % 5) as i64 - 2
    };
    let a: Vec<i64> = (0..EXACT * EXACT).map(|index| digit(index, 0)).collect();
    let b: Vec<i64> = (0..EXACT * EXACT)
        .map(|index| digit(index, 12_345))
        .collect();
    let floats = |numbers: &[i64]| numbers.iter().map(|it| *it as f32).collect::<Vec<_>>();
    let x = on_device(device, dtype, &floats(&a))?;
    let x = transfer::to_tensor(square(&x, EXACT)?)?;
    let weight = on_device(device, dtype, &floats(&b))?;
    let product = linear::forward(&x, square(&weight, EXACT)?, None, None)?;
    let product = transfer::to_vec(&product)?;
    let tolerance = match dtype {
        DType::Bf16 => 1.0 / 256.0,
        DType::F32 | DType::F64 => 0.0,
    };
    let rows = a.chunks_exact(EXACT).zip(product.chunks_exact(EXACT));
    let mut wrong = 0;
    for (row, found) in rows {
        for (column, found) in b.chunks_exact(EXACT).zip(found) {
            let exact: i64 = row.iter().zip(column).map(|(a, b)| a * b).sum();
            let difference = (f64::from(*found) - exact as f64).abs();
            let far = difference.is_nan() || difference > tolerance * exact.abs() as f64;
            wrong += usize::from(far);
        }
    }
    Ok(wrong)
}

/// Normal deviates, the same again after some.
fn normals(count: usize) -> Result<Vec<f32>> {
    let mut drawn = Buffer::zeroed(DType::F32, 65_521.min(count))?;
    let len = drawn.len();
    normal_fill(
        &mut drawn.view_mut(0..len, &[len])?,
        Stream::named(0, "smoke"),
        0,
        1.0,
    )?;
    let drawn = drawn.as_slice::<f32>()?;
    Ok(drawn.iter().copied().cycle().take(count).collect())
}

fn on_device(device: &Device, dtype: DType, numbers: &[f32]) -> Result<Buffer> {
    let mut host = Buffer::zeroed(dtype, numbers.len())?;
    match dtype {
        DType::Bf16 => {
            let targets = host.as_mut_slice::<bf16>()?;
            for (target, number) in targets.iter_mut().zip(numbers) {
                *target = bf16::from_f32(*number);
            }
        }
        DType::F32 => host.as_mut_slice::<f32>()?.copy_from_slice(numbers),
        DType::F64 => {
            let targets = host.as_mut_slice::<f64>()?;
            for (target, number) in targets.iter_mut().zip(numbers) {
                *target = f64::from(*number);
            }
        }
    }
    if device.facts().is_none() {
        return Ok(host);
    }
    let mut buffer = device.zeroed(dtype, numbers.len())?;
    buffer.copy_from_host(&host)?;
    Ok(buffer)
}

fn square(buffer: &Buffer, size: usize) -> Result<View<'_>> {
    Ok(buffer.view(0..buffer.len(), &[size, size])?)
}

#[cfg(test)]
mod tests {
    use cordee_ops::GpuOptions;

    use super::*;

    fn measure_all(device: &Device, checks: &[Check]) {
        let bench = DeviceBench {
            size: 64,
            bytes: 1 << 20,
            time: Duration::from_millis(5),
        };
        for check in checks {
            let value = bench.measure(device, *check).unwrap();
            match check {
                Check::Products => assert_eq!(value.to_bits(), 0),
                _ => assert!(value > 0.0, "{check}: {value}"),
            }
        }
    }

    #[test]
    fn the_processors_of_this_machine_are_right_and_have_a_speed() {
        measure_all(&Device::HOST, &Check::OF_PROCESSORS);
    }

    #[test]
    fn a_gpu_is_right_and_has_a_speed() {
        if Device::gpus() > 0 {
            let gpu = Device::gpu(0, &GpuOptions::default()).unwrap();
            measure_all(&gpu, &Check::OF_GPU);
        }
    }
}
