//! The launches, and which rows of gradients belong together.

use candle_core::Tensor;
use cordee_memory::{DType, View, ViewMut};

use super::OP;
use crate::{
    cuda::{Address, Arg, Blocks, Gpu, Grid, RowVector, Source},
    error::Result,
};

pub(crate) static SOURCE: Source = Source {
    name: "embedding",
    text: include_str!("kernels.cu"),
};

/// Occurrences that one block adds up. Of a token that occurs more often each so many are a part,
/// and the sums of the parts are added after.
const PART: usize = 64;

pub(super) fn forward(
    gpu: &Gpu,
    tokens: &[u32],
    weight: View<'_>,
    scale: f64,
    [vocab, dim]: [usize; 2],
) -> Result<Tensor> {
    let numbers = OP.numbers_of_view("weight", &weight)?;
    let weight = OP.parameter(gpu, "weight", weight, numbers, &[vocab, dim])?;
    let words = gpu.words(OP, tokens)?;
    let y = gpu.empty(OP, numbers, &[tokens.len(), dim])?;
    let vector = RowVector::new(numbers, &[dim], &[weight]);
    let kernel = gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), "forward")?;
    let blocks = Blocks::new(tokens.len(), dim / vector.count());
    let args: [Arg; 7] = [
        (&words).into(),
        weight.into(),
        (&y).into(),
        (tokens.len() as u32).into(),
        (dim as u32).into(),
        (blocks.rows as u32).into(),
        (scale as f32).into(),
    ];
    // SAFETY: every token is in the vocabulary, and y has a row for each.
    unsafe { kernel.launch(blocks.grid, &args)? };
    Ok(y.into_tensor())
}

pub(super) fn backward(
    gpu: &Gpu,
    tokens: &[u32],
    dy: &Tensor,
    scale: f64,
    dweight: &mut ViewMut<'_>,
    [vocab, dim]: [usize; 2],
) -> Result<()> {
    let numbers = OP.numbers("dy", dy)?;
    let dy = OP.resident(gpu, "dy", dy, numbers, &[tokens.len(), dim])?;
    let dweight = OP.parameter_mut(gpu, "dweight", dweight, DType::F32, &[vocab, dim])?;
    let plan = Plan::new(tokens);
    let parts = gpu.empty(OP, DType::F32, &[plan.parts.targets.len(), dim])?;
    let words = gpu.words(OP, &plan.words())?;
    let order = words.address();
    let mut next = order.plus(tokens.len(), DType::F32);
    let mut place = |groups: &Groups| {
        let bounds = next;
        let targets = bounds.plus(groups.bounds.len(), DType::F32);
        next = targets.plus(groups.targets.len(), DType::F32);
        Placed {
            bounds,
            targets,
            count: groups.targets.len(),
        }
    };
    let [whole, divided, joined] = [&plan.whole, &plan.parts, &plan.joined].map(&mut place);

    let vector = RowVector::new(numbers, &[dim], &[dy.address(), dweight]);
    let items = dim / vector.count();
    let kernel = |name| gpu.kernel_with(OP, &SOURCE, numbers, vector.definitions(), name);
    let add = kernel("add_gradients")?;
    let gradients = |groups: Placed, sums: Address, adds: u32| {
        let args: [Arg; 8] = [
            (&dy).into(),
            order.into(),
            groups.bounds.into(),
            groups.targets.into(),
            sums.into(),
            (dim as u32).into(),
            (scale as f32).into(),
            adds.into(),
        ];
        // SAFETY: the order names rows of dy; targets are tokens or parts, each of which `sums` has.
        unsafe { add.launch(Grid::of_groups(groups.count, items), &args) }
    };
    gradients(whole, dweight, 1)?;
    gradients(divided, parts.address(), 0)?;
    let args: [Arg; 5] = [
        (&parts).into(),
        joined.bounds.into(),
        joined.targets.into(),
        dweight.into(),
        (dim as u32).into(),
    ];
    // SAFETY: the bounds count parts, and targets are tokens.
    unsafe { kernel("add_parts")?.launch(Grid::of_groups(joined.count, items), &args) }
}

/// Groups of rows that are added up, and where: group g has the rows from `bounds[g]` to
/// `bounds[g + 1]`.
#[derive(Debug, PartialEq)]
struct Groups {
    bounds: Vec<u32>,
    targets: Vec<u32>,
}

impl Groups {
    fn from(start: usize) -> Self {
        Self {
            bounds: vec![start as u32],
            targets: Vec::new(),
        }
    }

    fn push(&mut self, end: usize, target: u32) {
        self.bounds.push(end as u32);
        self.targets.push(target);
    }
}

/// The same on a GPU.
#[derive(Clone, Copy)]
struct Placed {
    bounds: Address,
    targets: Address,
    count: usize,
}

/// How gradients are added up: in the order of the occurrences, whatever the GPU.
struct Plan {
    /// Indices of the tokens, those of one token together.
    order: Vec<u32>,
    /// Occurrences of the tokens that occur [`PART`] times or fewer; targets are tokens.
    whole: Groups,
    /// Parts of those of the others; targets are numbers of parts.
    parts: Groups,
    /// Parts of one token; targets are tokens.
    joined: Groups,
}

impl Plan {
    fn new(tokens: &[u32]) -> Self {
        let mut sorted: Vec<u32> = (0..tokens.len() as u32).collect();
        sorted.sort_by_key(|&index| tokens[index as usize]);
        let by_token = || sorted.chunk_by(|&a, &b| tokens[a as usize] == tokens[b as usize]);
        let (rare, frequent) = (
            by_token().filter(|group| group.len() <= PART),
            by_token().filter(|group| group.len() > PART),
        );
        let token = |group: &[u32]| tokens[group[0] as usize];

        let mut order = Vec::with_capacity(tokens.len());
        let mut whole = Groups::from(0);
        for group in rare {
            order.extend(group);
            whole.push(order.len(), token(group));
        }
        let (mut parts, mut joined) = (Groups::from(order.len()), Groups::from(0));
        for group in frequent {
            for part in group.chunks(PART) {
                order.extend(part);
                parts.push(order.len(), parts.targets.len() as u32);
            }
            joined.push(parts.targets.len(), token(group));
        }
        Self {
            order,
            whole,
            parts,
            joined,
        }
    }

    /// The order, and bounds and targets of each kind of groups.
    fn words(&self) -> Vec<u32> {
        let mut words = self.order.clone();
        for groups in [&self.whole, &self.parts, &self.joined] {
            words.extend(&groups.bounds);
            words.extend(&groups.targets);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::{Groups, PART, Plan};

    #[test]
    fn rare_tokens_are_whole_and_frequent_ones_in_parts() {
        let mut tokens = vec![7; PART + 1];
        tokens[3] = 9;
        tokens.extend([2, 7, 9]);
        let plan = Plan::new(&tokens);
        let occurrences = tokens.len() as u32;
        assert_eq!(plan.order[..3], [occurrences - 3, 3, occurrences - 1]);
        assert_eq!(plan.order[3..6], [0, 1, 2]);
        assert_eq!(plan.order[6], 4);
        assert_eq!(plan.order.last(), Some(&(occurrences - 2)));
        let groups = |bounds: &[u32], targets: &[u32]| Groups {
            bounds: bounds.to_vec(),
            targets: targets.to_vec(),
        };
        let part = PART as u32;
        assert_eq!(plan.whole, groups(&[0, 1, 3], &[2, 9]));
        assert_eq!(plan.parts, groups(&[3, 3 + part, 4 + part], &[0, 1]));
        assert_eq!(plan.joined, groups(&[0, 2], &[7]));
        assert_eq!(plan.words().len(), tokens.len() + 3 + 2 + 3 + 2 + 2 + 1);
    }

    #[test]
    fn no_tokens_are_no_groups() {
        let plan = Plan::new(&[]);
        assert_eq!(plan.words(), [0, 0, 0]);
    }
}
