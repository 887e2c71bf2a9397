//! Layouts and the windows they open into a buffer.

#![expect(
    clippy::float_cmp,
    reason = "what is written is what is read, bit by bit"
)]

use cordee_memory::{ALIGNMENT, Buffer, DType, Layout, MemoryError, View, ViewMut};
use proptest::prelude::*;

fn layout(dtype: DType, tensors: &[(&str, &[usize])]) -> Result<Layout, MemoryError> {
    Layout::new(
        dtype,
        tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), shape.to_vec())),
    )
}

fn dtypes() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F64)]
}

proptest! {
    #[test]
    fn tensors_are_aligned_in_order_and_apart(
        dtype in dtypes(),
        shapes in prop::collection::vec(prop::collection::vec(0_usize..20, 0..4), 0..20),
    ) {
        let tensors = shapes.iter().enumerate().map(|(index, shape)| (format!("t{index}"), shape.clone()));
        let layout = Layout::new(dtype, tensors).unwrap();
        let step = ALIGNMENT / dtype.size_in_bytes();
        let mut end = 0;
        for (index, slot) in layout.slots().iter().enumerate() {
            prop_assert_eq!(slot.shape(), &shapes[index][..]);
            prop_assert_eq!(slot.len(), shapes[index].iter().product::<usize>());
            prop_assert_eq!(slot.offset(), usize::next_multiple_of(end, step), "no more padding than needed");
            prop_assert_eq!(layout.find(&format!("t{index}")), Some(index));
            end = slot.range().end;
        }
        prop_assert_eq!(layout.len(), end.next_multiple_of(step));
        prop_assert_eq!(layout.find("other"), None);
    }

    #[test]
    fn parts_are_the_whole_in_order(
        lens in prop::collection::vec(0_usize..300, 0..12),
        most in 0_usize..500,
    ) {
        let tensors = lens.iter().enumerate().map(|(index, &len)| (format!("t{index}"), vec![len]));
        let layout = Layout::new(DType::F32, tensors).unwrap();
        let parts = layout.parts(most).unwrap();
        let mut slots = layout.slots().iter();
        let mut end = 0;
        for (first, part) in &parts {
            prop_assert_eq!(*first, end);
            end = first + part.len();
            for (slot, whole) in part.slots().iter().zip(slots.by_ref()) {
                prop_assert_eq!((slot.name(), slot.shape()), (whole.name(), whole.shape()));
                prop_assert_eq!(first + slot.offset(), whole.offset());
            }
            let used = part.slots().last().unwrap().range().end;
            prop_assert!(used <= most || part.slots().len() == 1, "{} of {}", used, most);
        }
        prop_assert_eq!(end, layout.len());
        prop_assert!(slots.next().is_none());
    }

    /// Writing every tensor through views touches its own elements and leaves the padding zero.
    #[test]
    fn views_reach_their_own_elements(
        lens in prop::collection::vec(0_usize..200, 1..10),
        order in any::<prop::sample::Index>(),
    ) {
        let tensors = lens.iter().enumerate().map(|(index, &len)| (format!("t{index}"), vec![len]));
        let layout = Layout::new(DType::F32, tensors).unwrap();
        let mut buffer = Buffer::zeroed(layout.dtype(), layout.len()).unwrap();
        // Any order of slots gives views in that order.
        let first = order.index(lens.len());
        let indices: Vec<_> = (0..lens.len()).map(|index| (index + first) % lens.len()).rev().collect();
        let views = buffer.views_mut(indices.iter().map(|&index| layout.slot(index))).unwrap();
        for (&index, mut view) in indices.iter().zip(views) {
            prop_assert_eq!(view.shape(), &[lens[index]]);
            view.as_mut_slice::<f32>().unwrap().fill(index as f32 + 1.0);
        }
        let mut expected = vec![0.0; layout.len()];
        for (index, slot) in layout.slots().iter().enumerate() {
            expected[slot.range()].fill(index as f32 + 1.0);
            prop_assert_eq!(buffer.slot_view(slot).unwrap().as_slice::<f32>().unwrap(), &expected[slot.range()]);
        }
        prop_assert_eq!(buffer.as_slice::<f32>().unwrap(), &expected[..]);
    }
}

#[test]
fn wrong_layouts_are_refused() {
    let twice = layout(DType::F32, &[("a", &[1]), ("b", &[1]), ("a", &[2])]).unwrap_err();
    assert_eq!(twice.to_string(), "tensor `a` appears twice in one layout");
    let deep = layout(DType::F32, &[("a", &[1, 1, 1, 1, 1])]).unwrap_err();
    assert!(matches!(deep, MemoryError::Dimensions { .. }), "{deep:?}");
    for shape in [&[usize::MAX, 2][..], &[usize::MAX], &[usize::MAX / 8]] {
        let huge = layout(DType::F64, &[("small", &[1]), ("huge", shape)]).unwrap_err();
        assert_eq!(huge.to_string(), "`huge` is larger than the address space");
    }
}

#[test]
fn writable_views_never_overlap() {
    let wide = layout(DType::F32, &[("wide", &[128])]).unwrap();
    let narrow = layout(DType::F32, &[("first", &[64]), ("second", &[64])]).unwrap();
    let mut buffer = Buffer::zeroed(DType::F32, 128).unwrap();
    let error = buffer
        .views_mut([narrow.slot(1), wide.slot(0)])
        .unwrap_err();
    assert!(
        matches!(&error, MemoryError::Overlap { first, second } if first == "wide" && second == "second"),
        "{error}"
    );
    assert!(buffer.views_mut([narrow.slot(1), narrow.slot(1)]).is_err());
    assert_eq!(buffer.views_mut(narrow.slots()).unwrap().len(), 2);
    assert!(buffer.views_mut(&[]).unwrap().is_empty());
}

#[test]
fn wrong_windows_are_refused() {
    let mut buffer = Buffer::zeroed(DType::F32, 100).unwrap();
    let error = buffer.view(90..101, &[11]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "elements 90..101 are not inside a buffer of 100 elements"
    );
    let backwards = std::ops::Range { start: 5, end: 4 };
    assert!(matches!(
        buffer.view_mut(backwards, &[1]),
        Err(MemoryError::Range { .. })
    ));
    let error = buffer.view(0..100, &[3, 33]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "shape [3, 33] does not describe 100 elements"
    );
    assert!(matches!(
        buffer.view(0..100, &[usize::MAX, 2]),
        Err(MemoryError::Shape { .. })
    ));
    let error = buffer.as_slice::<f64>().unwrap_err();
    assert_eq!(error.to_string(), "expected f64 but the memory holds f32");
    assert!(buffer.as_mut_slice::<f64>().is_err());
    let longer = layout(DType::F32, &[("longer", &[101])]).unwrap();
    assert!(matches!(
        buffer.slot_view(longer.slot(0)),
        Err(MemoryError::Range { .. })
    ));
    assert!(matches!(
        buffer.views_mut(longer.slots()),
        Err(MemoryError::Range { .. })
    ));
}

#[test]
fn views_are_windows_and_not_copies() {
    let mut buffer = Buffer::zeroed(DType::F64, 12).unwrap();
    let mut view = buffer.view_mut(2..8, &[2, 3]).unwrap();
    assert_eq!(
        (view.dtype(), view.len(), view.shape()),
        (DType::F64, 6, &[2, 3][..])
    );
    view.reborrow().as_mut_slice::<f64>().unwrap()[5] = 7.0;
    assert_eq!(view.as_view().as_slice::<f64>().unwrap()[5], 7.0);
    assert_eq!(buffer.as_slice::<f64>().unwrap()[7], 7.0);
    let scalar = buffer.view(7..8, &[]).unwrap();
    let copied = scalar;
    assert_eq!(
        (scalar.len(), copied.as_slice::<f64>().unwrap()),
        (1, &[7.0][..])
    );
    assert_eq!(scalar.as_bytes().unwrap(), 7.0_f64.to_ne_bytes());
    buffer.fill_zero().unwrap();
    assert!(buffer.as_bytes().unwrap().iter().all(|&byte| byte == 0));

    let mut elements = [1.0_f32, 2.0, 3.0];
    assert!(View::from_slice(&elements, &[2]).is_err());
    ViewMut::from_slice(&mut elements, &[3])
        .unwrap()
        .fill_zero()
        .unwrap();
    assert_eq!(elements, [0.0; 3]);
}

#[test]
fn buffers_are_aligned_and_zero() {
    for len in [0, 1, 63, 64, 1_000_003] {
        let buffer = Buffer::zeroed(DType::F64, len).unwrap();
        assert_eq!(
            buffer.pointer().unwrap().as_ptr().align_offset(ALIGNMENT),
            0
        );
        assert_eq!(
            (buffer.len(), buffer.as_bytes().unwrap().len()),
            (len, len * 8)
        );
        assert_eq!(buffer.shared_offset(), None);
        assert!(
            buffer
                .as_slice::<f64>()
                .unwrap()
                .iter()
                .all(|element| element.to_bits() == 0)
        );
    }
}

/// Four GiB of buffers in a moment and without the memory for them: untouched pages cost nothing.
#[test]
fn untouched_memory_costs_nothing() {
    let resident = || -> usize {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let before = resident();
    let buffers: Vec<_> = (0..8)
        .map(|_| Buffer::zeroed(DType::F32, 1 << 28).unwrap())
        .collect();
    let pages = resident().saturating_sub(before);
    assert!(
        pages < 10_000,
        "{pages} pages for {} untouched buffers",
        buffers.len()
    );
}

#[test]
fn too_much_is_an_error_with_numbers() {
    let error = Buffer::zeroed(DType::F32, usize::MAX / 16).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("cannot allocate {} bytes", usize::MAX / 16 * 4)),
        "{error}"
    );
    let error = Buffer::zeroed(DType::F64, usize::MAX / 8).unwrap_err();
    assert!(matches!(error, MemoryError::TooLarge { .. }), "{error:?}");
}

#[test]
fn rows_of_a_view_are_a_view() {
    let mut elements = [0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0];
    let view = View::from_slice(&elements, &[3, 2]).unwrap();
    let rows = view.rows(1..3).unwrap();
    assert_eq!(rows.shape(), [2, 2]);
    assert_eq!(rows.as_slice::<f32>().unwrap(), [2.0, 3.0, 4.0, 5.0]);
    assert!(view.rows(3..3).unwrap().is_empty());
    assert!(view.rows(2..4).is_err());

    let mut view = ViewMut::from_slice(&mut elements, &[6]).unwrap();
    let mut rows = view.rows_mut(4..5).unwrap();
    rows.as_mut_slice::<f32>().unwrap()[0] = 9.0;
    assert!(view.rows_mut(0..7).is_err());
    assert_eq!(elements[3..], [3.0, 9.0, 5.0]);
}
