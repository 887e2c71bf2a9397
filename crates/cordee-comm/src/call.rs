//! What a rank says about the collective it is in, so that ranks can compare and errors can tell.

use std::{fmt, ops::Range};

use cordee_memory::DType;

/// What ranks do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Operation {
    /// Entering the group.
    Join = 1,
    /// [`allocate`](crate::ProcessGroup::allocate).
    Allocate,
    /// [`all_reduce`](crate::ProcessGroup::all_reduce).
    AllReduce,
    /// [`reduce_scatter`](crate::ProcessGroup::reduce_scatter).
    ReduceScatter,
    /// [`all_gather`](crate::ProcessGroup::all_gather).
    AllGather,
    /// [`broadcast`](crate::ProcessGroup::broadcast).
    Broadcast,
    /// [`barrier`](crate::ProcessGroup::barrier).
    Barrier,
    /// [`sum_scalars`](crate::ProcessGroup::sum_scalars).
    SumScalars,
    /// [`gather_bytes`](crate::ProcessGroup::gather_bytes).
    GatherBytes,
    /// Leaving the group in order.
    Leave,
}

impl Operation {
    const ALL: [Self; 10] = [
        Self::Join,
        Self::Allocate,
        Self::AllReduce,
        Self::ReduceScatter,
        Self::AllGather,
        Self::Broadcast,
        Self::Barrier,
        Self::SumScalars,
        Self::GatherBytes,
        Self::Leave,
    ];

    /// Name, as the method is called.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Allocate => "allocate",
            Self::AllReduce => "all_reduce",
            Self::ReduceScatter => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Broadcast => "broadcast",
            Self::Barrier => "barrier",
            Self::SumScalars => "sum_scalars",
            Self::GatherBytes => "gather_bytes",
            Self::Leave => "leave",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The memory a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Type of the elements.
    pub dtype: DType,
    /// The elements of the buffer.
    pub range: Range<usize>,
    /// Which of the group's allocations the buffer is, from 0; `None` for other memory.
    pub allocation: Option<usize>,
    /// Whether it is memory of a device.
    pub on_device: bool,
}

/// One collective call, as a rank entered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Position in the order of this group's calls; joining is 0.
    pub sequence: u64,
    /// What is done.
    pub operation: Operation,
    /// The memory, for calls that take some.
    pub place: Option<Place>,
    /// The rank that gives, for [`Operation::Broadcast`].
    pub root: Option<usize>,
}

/// Added to the number of a type where the memory is a device's.
const ON_DEVICE: u64 = 1 << 8;

/// A [`Call`] in numbers, for memory that other processes read.
pub(crate) const CALL_WORDS: usize = 7;

impl Call {
    /// Bytes of memory that the call is about, on each rank.
    pub fn bytes(&self) -> usize {
        self.place
            .as_ref()
            .map_or(0, |place| place.range.len() * place.dtype.size_in_bytes())
    }

    /// Name, number and size, without where in the memory.
    pub fn brief(&self) -> String {
        match &self.place {
            Some(_) => format!(
                "{} #{} of {} bytes",
                self.operation,
                self.sequence,
                self.bytes()
            ),
            None => format!("{} #{}", self.operation, self.sequence),
        }
    }

    pub(crate) fn to_words(&self) -> [u64; CALL_WORDS] {
        let (dtype, range, allocation) = match &self.place {
            None => (0, 0..0, 0),
            Some(place) => (
                match place.dtype {
                    DType::F32 => 1,
                    DType::F64 => 2,
                    DType::Bf16 => 3,
                } | if place.on_device { ON_DEVICE } else { 0 },
                place.range.clone(),
                place.allocation.map_or(0, |index| index as u64 + 1),
            ),
        };
        [
            self.sequence,
            self.operation as u64,
            dtype,
            range.start as u64,
            range.end as u64,
            allocation,
            self.root.map_or(0, |root| root as u64 + 1),
        ]
    }

    /// `None` for words that no rank of this version writes.
    pub(crate) fn from_words(words: [u64; CALL_WORDS]) -> Option<Self> {
        let [sequence, operation, dtype, start, end, allocation, root] = words;
        let operation = Operation::ALL
            .into_iter()
            .find(|candidate| *candidate as u64 == operation)?;
        let on_device = dtype & ON_DEVICE != 0;
        let dtype = match dtype & !ON_DEVICE {
            0 => None,
            1 => Some(DType::F32),
            2 => Some(DType::F64),
            3 => Some(DType::Bf16),
            _ => return None,
        };
        let one_less = |number: u64| number.checked_sub(1).map(|number| number as usize);
        let place = dtype.map(|dtype| Place {
            dtype,
            range: start as usize..end as usize,
            allocation: one_less(allocation),
            on_device,
        });
        Some(Self {
            sequence,
            operation,
            place,
            root: one_less(root),
        })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} #{}", self.operation, self.sequence)?;
        if let Some(Place {
            dtype,
            range,
            allocation,
            on_device,
        }) = &self.place
        {
            write!(
                formatter,
                " of {} bytes ({dtype} {}..{}",
                self.bytes(),
                range.start,
                range.end
            )?;
            match (self.operation, allocation) {
                (Operation::Allocate | Operation::SumScalars, _) => write!(formatter, ")")?,
                (_, Some(index)) => write!(formatter, " of shared buffer {index})")?,
                (_, None) if *on_device => write!(formatter, " of a device's buffer)")?,
                (_, None) => write!(formatter, " of a private buffer)")?,
            }
        }
        match self.root {
            Some(root) => write!(formatter, " from rank {root}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        let place = Place {
            dtype: DType::F64,
            range: 64..100,
            allocation: Some(0),
            on_device: false,
        };
        let on_device = Place {
            allocation: None,
            on_device: true,
            ..place.clone()
        };
        for operation in Operation::ALL {
            for (place, root) in [
                (None, None),
                (Some(place.clone()), Some(0)),
                (Some(place.clone()), None),
                (Some(on_device.clone()), None),
            ] {
                let call = Call {
                    sequence: 7,
                    operation,
                    place,
                    root,
                };
                assert_eq!(Call::from_words(call.to_words()), Some(call));
            }
        }
        assert_eq!(Call::from_words([0; CALL_WORDS]), None);
    }

    #[test]
    fn a_call_says_what_it_is_about() {
        let place = Some(Place {
            dtype: DType::F32,
            range: 0..1024,
            allocation: Some(2),
            on_device: false,
        });
        let call = Call {
            sequence: 12,
            operation: Operation::AllReduce,
            place,
            root: None,
        };
        assert_eq!(
            call.to_string(),
            "all_reduce #12 of 4096 bytes (f32 0..1024 of shared buffer 2)"
        );
        assert_eq!(call.brief(), "all_reduce #12 of 4096 bytes");
        let call = Call {
            sequence: 13,
            operation: Operation::Barrier,
            place: None,
            root: None,
        };
        assert_eq!(call.to_string(), "barrier #13");
    }
}
