//! Saving and restoring the state of a run, by all ranks together.
//!
//! The protocol on disk is `cordee-checkpoint`'s; here is who does what when, and what a run needs
//! to know to go on: the step. The position in the data follows from it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use cordee_checkpoint::{
    self as checkpoint, Checkpoint, CheckpointError, CommitInfo, Piece, Plan as WritePlan,
    TensorSource, TensorSpec,
};
use cordee_comm::{ProcessGroup, shard_range};
use cordee_memory::{Buffer, DType, Layout};
use cordee_ops::digest;
use cordee_protocol::StatusPage;
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::{TrainError, TrainState, held::Held, state::PART};

/// What a checkpoint says of the run beside its tensors.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunState {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Of the resolved config, where it decides the result.
    pub(crate) config_fingerprint: String,
    /// Of the data and the tokenizer.
    pub(crate) corpus_fingerprint: String,
    /// Ranks that wrote it. Any number may go on from it.
    pub(crate) world_size: usize,
    /// Whether it was to be tested on held-out text when the run was asked to stop.
    #[serde(default)]
    pub(crate) evaluation_due: bool,
}

/// Where and how checkpoints of a run are written.
pub(crate) struct Checkpoints {
    dir: PathBuf,
    plan: WritePlan,
    piece_size: usize,
    keep: usize,
    deadline: Duration,
    status: StatusPage,
}

/// How a save ended, the same on every rank.
pub(crate) enum Saved {
    /// It is durable.
    Committed {
        /// Where.
        path: PathBuf,
        /// Bytes of all files.
        bytes: u64,
        /// What went wrong afterwards, on rank 0: the checkpoint is durable all the same.
        warning: Option<String>,
    },
    /// It was given up; the checkpoints before it are untouched.
    Abandoned {
        /// Which ranks could not do their part, and why.
        why: String,
    },
}

/// Why a rank cannot do its part of a save.
enum Refusal {
    /// The disk or the metrics: the next attempt may succeed.
    Lasting(String),
    /// Ranks hold different bits: no later checkpoint could be trusted.
    Replicas(String),
}

impl Refusal {
    /// As it travels between ranks: a letter for the kind, then the text.
    fn to_text(&self) -> String {
        match self {
            Self::Lasting(why) => format!("l{why}"),
            Self::Replicas(why) => format!("r{why}"),
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        let replicas = text
            .strip_prefix('r')
            .map(|why| Self::Replicas(why.to_owned()));
        replicas.or_else(|| {
            text.strip_prefix('l')
                .map(|why| Self::Lasting(why.to_owned()))
        })
    }
}

impl From<CheckpointError> for Refusal {
    fn from(error: CheckpointError) -> Self {
        let text = error.to_string();
        match error {
            CheckpointError::ReplicasDiffer { .. } => Self::Replicas(text),
            _ => Self::Lasting(text),
        }
    }
}

/// Checks that every rank holds the same bits, naming those that do not.
pub(crate) fn check_replicas(
    state: &TrainState,
    group: &mut dyn ProcessGroup,
) -> Result<(), TrainError> {
    if group.world_size() == 1 {
        return Ok(());
    }
    let hashes = group.gather_bytes(replica_digest(state)?.as_bytes())?;
    let odd: Vec<String> = (1..hashes.len())
        .filter(|&rank| hashes[rank] != hashes[0])
        .map(|rank| rank.to_string())
        .collect();
    if odd.is_empty() {
        return Ok(());
    }
    let why = format!("not as on rank 0: ranks {}", odd.join(", "));
    Err(TrainError::ReplicasDiffer {
        step: state.step,
        why,
    })
}

/// Of what every rank holds the same of.
fn replica_digest(state: &TrainState) -> Result<String, TrainError> {
    let digests = state.replicated().into_iter().map(digest);
    Ok(format!("{:016x?}", digests.collect::<Result<Vec<_>, _>>()?))
}

/// What this rank has of what is saved, read from where it is.
struct Persistent<'a> {
    state: &'a TrainState,
    status: &'a StatusPage,
}

impl TensorSource for Persistent<'_> {
    fn copy_bytes(&self, tensor: &str, offset: u64, out: &mut [u8]) -> Result<(), String> {
        // A large share takes longer than a rank may be quiet.
        self.status.progress();
        let layout = &self.state.layout;
        // Longest prefix first: the weights' is empty.
        for (prefix, buffer, held) in self.state.persistent().into_iter().rev() {
            let slot = tensor
                .strip_prefix(prefix)
                .and_then(|name| layout.find(name));
            if let Some(index) = slot {
                let width = buffer.dtype().size_in_bytes();
                let first = layout.slot(index).offset() * width + offset as usize;
                // Whoever writes asks for bytes, which may begin and end within an element.
                let elements = first / width..(first + out.len()).div_ceil(width);
                let place = held
                    .find(&elements)
                    .ok_or("this rank does not hold that part of it")?;
                let start = place.start * width + first % width;
                return buffer
                    .read_bytes(start, out)
                    .map_err(|error| error.to_string());
            }
        }
        Err("there is no such tensor".to_owned())
    }
}

impl Checkpoints {
    pub(crate) fn new(
        run_dir: &Path,
        state: &TrainState,
        plan: &cordee_config::Plan,
        status: &StatusPage,
    ) -> Result<Self, TrainError> {
        let config = &plan.config.checkpoint;
        Ok(Self {
            dir: run_dir.join("checkpoints"),
            plan: write_plan(state, plan.world_size)?,
            piece_size: config.piece_size.0 as usize,
            keep: config.keep,
            deadline: plan.config.parallel.timeout.0,
            status: status.clone(),
        })
    }

    /// Writes this rank's share, and commits on rank 0 once all shares are there. What stands in the
    /// way of a rank, `obstacle` too, gives the attempt up on all ranks; only an error between
    /// ranks, or replicas that differ, is returned as one.
    pub(crate) fn save(
        &self,
        state: &TrainState,
        run: &RunState,
        obstacle: Option<String>,
        group: &mut dyn ProcessGroup,
    ) -> Result<Saved, TrainError> {
        let (rank, step) = (group.rank(), state.step);
        let begun = match obstacle {
            Some(obstacle) => Err(Refusal::Lasting(obstacle)),
            None if rank == 0 => checkpoint::begin(&self.dir, step)
                .map(drop)
                .map_err(Refusal::from),
            None => Ok(()),
        };
        if let Some(abandoned) = self.agree(step, begun, group)? {
            return Ok(abandoned);
        }
        let temporary = checkpoint::temporary_path(&self.dir, step);
        let persistent = Persistent {
            state,
            status: &self.status,
        };
        // One rank agrees with itself.
        let replicas = (group.world_size() > 1).then(|| replica_digest(state));
        let written = self
            .write_share(&temporary, rank, &persistent, replicas.transpose()?)
            .map_err(Refusal::from);
        if let Some(abandoned) = self.agree(step, written, group)? {
            return Ok(abandoned);
        }
        let mut committed = None;
        let outcome = if rank == 0 {
            self.commit(&temporary, run)
                .map(|it| committed = Some(it))
                .map_err(Refusal::from)
        } else {
            Ok(())
        };
        if let Some(abandoned) = self.agree(step, outcome, group)? {
            return Ok(abandoned);
        }
        let path = checkpoint::committed_path(&self.dir, step);
        let (bytes, warning) = committed.map_or((0, None), |committed| {
            let hint = committed.warning.map(|error| error.to_string());
            (committed.bytes, hint.or_else(|| self.retain()))
        });
        Ok(Saved::Committed {
            path,
            bytes,
            warning,
        })
    }

    /// Whether all ranks succeeded so far; if not, rank 0 clears the attempt away.
    fn agree(
        &self,
        step: u64,
        outcome: Result<(), Refusal>,
        group: &mut dyn ProcessGroup,
    ) -> Result<Option<Saved>, TrainError> {
        let own = outcome.map_or_else(|refusal| refusal.to_text(), |()| String::new());
        let all = group.gather_bytes(own.as_bytes())?;
        let texts = all.iter().map(|text| String::from_utf8_lossy(text));
        let refusals: Vec<(usize, Refusal)> = texts
            .enumerate()
            .filter_map(|(rank, text)| Some((rank, Refusal::from_text(&text)?)))
            .collect();
        if refusals.is_empty() {
            return Ok(None);
        }
        let clearing = checkpoint::temporary_path(&self.dir, step);
        let cleared = if group.rank() == 0 {
            checkpoint::abandon(&clearing)
        } else {
            Ok(())
        };
        let mut whys = Vec::new();
        for (rank, refusal) in refusals {
            match refusal {
                Refusal::Replicas(why) => return Err(TrainError::ReplicasDiffer { step, why }),
                Refusal::Lasting(why) => whys.push(format!("rank {rank}: {why}")),
            }
        }
        whys.extend(
            cleared
                .err()
                .map(|error| format!("clearing the attempt away: {error}")),
        );
        Ok(Some(Saved::Abandoned {
            why: whys.join("; "),
        }))
    }

    fn write_share(
        &self,
        temporary: &Path,
        rank: usize,
        persistent: &Persistent<'_>,
        replicas: Option<String>,
    ) -> Result<(), CheckpointError> {
        checkpoint::write_shard(
            temporary,
            rank,
            &self.plan,
            persistent,
            replicas,
            self.piece_size,
        )
        .map(drop)
    }

    fn commit(
        &self,
        temporary: &Path,
        run: &RunState,
    ) -> Result<checkpoint::Committed, CheckpointError> {
        let info = CommitInfo {
            step: run.step,
            plan: &self.plan,
            state: serde_json::to_value(run).expect("a run state holds nothing that JSON cannot"),
            deadline: self.deadline,
        };
        checkpoint::commit(temporary, &info)
    }

    /// Removes what is older than what is kept. That it fails is worth a word, not the checkpoint.
    fn retain(&self) -> Option<String> {
        checkpoint::retain(&self.dir, self.keep)
            .err()
            .map(|error| format!("old checkpoints stay: {error}"))
    }

    /// Checks that `checkpoints` more of them fit on the disk.
    pub(crate) fn check_room(&self, checkpoints: u64) -> Result<(), TrainError> {
        let needed = checkpoints * checkpoint::space_needed(&self.plan)?;
        let free = checkpoint::free_space(&self.dir)?;
        if free >= needed {
            return Ok(());
        }
        Err(TrainError::NoRoom {
            path: self.dir.clone(),
            checkpoints,
            needed,
            free,
        })
    }
}

/// Fills `state` from a checkpoint and returns what it says of its run.
pub(crate) fn restore(
    path: &Path,
    state: &mut TrainState,
    status: &StatusPage,
) -> Result<RunState, TrainError> {
    let checkpoint = Checkpoint::open(path)?;
    let run: RunState = serde_json::from_value(checkpoint.state().clone()).map_err(|error| {
        TrainError::ForeignCheckpoint {
            path: path.to_owned(),
            why: format!("its state cannot be read: {error}"),
        }
    })?;
    let saved = Source {
        checkpoint,
        path,
        status,
    };
    state.fill_parameters(|layout, buffer| {
        saved.read("", layout, &Held::all(layout.len()), buffer)
    })?;
    let (layout, held) = (state.layout.clone(), state.moments_held.clone());
    for (prefix, buffer) in state.moments_mut() {
        if !buffer.is_on_device() {
            saved.read(prefix, &layout, &held, buffer)?;
            continue;
        }
        for (first, part) in layout.parts(PART)? {
            let (held, place) = held.within(first..first + part.len());
            let mut read = Buffer::zeroed(buffer.dtype(), held.len())?;
            saved.read(prefix, &part, &held, &mut read)?;
            let width = buffer.dtype().size_in_bytes();
            buffer.write_bytes(place * width, read.as_bytes()?)?;
        }
    }
    state.step = run.step;
    Ok(run)
}

/// The weights alone, from the checkpoint at `path`.
pub fn load_parameters(path: &Path, layout: &Layout) -> Result<Buffer, TrainError> {
    let mut parameters = Buffer::zeroed(layout.dtype(), layout.len())?;
    let saved = Source {
        checkpoint: Checkpoint::open(path)?,
        path,
        status: &StatusPage::private(),
    };
    saved.read("", layout, &Held::all(layout.len()), &mut parameters)?;
    Ok(parameters)
}

/// A checkpoint that is read.
struct Source<'a> {
    checkpoint: Checkpoint,
    path: &'a Path,
    status: &'a StatusPage,
}

impl Source<'_> {
    /// Reads what `held` says of the tensors of `layout` into `buffer`.
    fn read(
        &self,
        prefix: &str,
        layout: &Layout,
        held: &Held,
        buffer: &mut Buffer,
    ) -> Result<(), TrainError> {
        let here = buffer.dtype();
        let width = here.size_in_bytes();
        for slot in layout.slots() {
            let name = format!("{prefix}{}", slot.name());
            let foreign = |why| TrainError::ForeignCheckpoint {
                path: self.path.to_owned(),
                why,
            };
            let tensors = self.checkpoint.tensors();
            match tensors.iter().find(|tensor| tensor.name == name) {
                None => return Err(foreign(format!("it has no tensor `{name}`"))),
                Some(tensor) if tensor.shape != slot.shape() => {
                    let why = format!(
                        "`{name}` is {:?} there and {:?} here",
                        tensor.shape,
                        slot.shape()
                    );
                    return Err(foreign(why));
                }
                Some(_) => {}
            }
            for (part, place) in held.parts(slot.range()) {
                let bytes = &mut buffer.as_mut_bytes()?[place.start * width..place.end * width];
                let first = (part.start - slot.offset()) as u64;
                self.read_as(here, &name, first, bytes)?;
                self.status.progress();
            }
        }
        Ok(())
    }

    /// Reads elements of a tensor as `dtype`, whichever of f32 and bf16 they were saved in.
    fn read_as(
        &self,
        dtype: DType,
        name: &str,
        first: u64,
        out: &mut [u8],
    ) -> Result<(), TrainError> {
        let mut specs = self.checkpoint.tensors().iter();
        let saved = specs.find(|tensor| tensor.name == name);
        let saved = saved.map_or(saved_as(dtype), |tensor| tensor.dtype);
        if saved == saved_as(dtype) {
            return Ok(self.checkpoint.read_range(name, first, out)?);
        }
        let elements = out.len() / dtype.size_in_bytes();
        match (saved, dtype) {
            (checkpoint::Dtype::BF16, DType::F32) => {
                let mut narrow = vec![0; 2 * elements];
                self.checkpoint.read_range(name, first, &mut narrow)?;
                let pairs = out.chunks_exact_mut(4).zip(narrow.chunks_exact(2));
                for (wide, narrow) in pairs {
                    let value = bf16::from_le_bytes([narrow[0], narrow[1]]).to_f32();
                    wide.copy_from_slice(&value.to_le_bytes());
                }
            }
            (checkpoint::Dtype::F32, DType::Bf16) => {
                let mut wide = vec![0; 4 * elements];
                self.checkpoint.read_range(name, first, &mut wide)?;
                let pairs = out.chunks_exact_mut(2).zip(wide.chunks_exact(4));
                for (narrow, wide) in pairs {
                    let value = f32::from_le_bytes([wide[0], wide[1], wide[2], wide[3]]);
                    narrow.copy_from_slice(&bf16::from_f32(value).to_le_bytes());
                }
            }
            (saved, _) => {
                let why = format!("`{name}` is saved as {saved:?}, and F32 and BF16 can be read");
                let path = self.path.to_owned();
                return Err(TrainError::ForeignCheckpoint { path, why });
            }
        }
        Ok(())
    }
}

/// Every tensor of the state, by its name in a checkpoint.
pub(crate) fn tensor_specs(state: &TrainState) -> Vec<TensorSpec> {
    let named = |prefix: &'static str, dtype| {
        state.layout.slots().iter().map(move |slot| TensorSpec {
            name: format!("{prefix}{}", slot.name()),
            dtype: saved_as(dtype),
            shape: slot.shape().to_vec(),
        })
    };
    state
        .persistent()
        .into_iter()
        .flat_map(|(prefix, buffer, _)| named(prefix, buffer.dtype()))
        .collect()
}

/// In safetensors' words.
fn saved_as(dtype: DType) -> checkpoint::Dtype {
    match dtype {
        DType::Bf16 => checkpoint::Dtype::BF16,
        DType::F32 => checkpoint::Dtype::F32,
        DType::F64 => checkpoint::Dtype::F64,
    }
}

/// Who writes what: where ranks share state out, each what it holds.
fn write_plan(state: &TrainState, world: usize) -> Result<WritePlan, CheckpointError> {
    let specs = tensor_specs(state);
    if !state.sharded {
        return WritePlan::new(&specs, world);
    }
    let slots = state.layout.slots().len();
    let mut pieces = Vec::new();
    for writer in 0..world {
        let shards = state.gradients.ranges();
        let held = Held::only(shards.map(|range| shard_range(range, world, writer)));
        for (index, part, _) in held.tensors(&state.layout) {
            // The same elements of the weight and of its two moments.
            pieces.extend((0..3).map(|kind| Piece {
                tensor: kind * slots + index,
                start: part.start as u64,
                len: part.len() as u64,
                writer,
            }));
        }
    }
    WritePlan::from_pieces(&specs, world, pieces)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use cordee_comm::SharedMemoryGroup;
    use cordee_config::{ByteSize, ModelConfig, ParallelConfig, Shard};
    use cordee_memory::SharedMemory;
    use cordee_model::Model;
    use cordee_ops::{Device, GpuOptions, random};

    use super::*;
    use crate::Compute;

    fn model() -> Model {
        let config = ModelConfig {
            tie_embeddings: true,
            init_std: 0.1,
            ..ModelConfig::llama(8, 1, 2, 8)
        };
        Model::new(&config, 16, 4).unwrap()
    }

    /// What `work` returns on each of two ranks whose states differ in `odd` elements on rank 1.
    fn on_two_ranks<T: Send>(
        odd: usize,
        work: impl Fn(&TrainState, &mut dyn ProcessGroup) -> Result<T, TrainError> + Sync,
    ) -> Vec<Result<T, TrainError>> {
        let memory = SharedMemory::create("replicas").unwrap();
        let rank = |rank| {
            let memory = memory.try_clone().unwrap();
            let mut group =
                SharedMemoryGroup::join(memory, rank, 2, Duration::from_secs(20)).unwrap();
            let model = model();
            let mut state = TrainState::new(
                &model,
                &Compute::HOST,
                &ParallelConfig::default(),
                &mut group,
            )
            .unwrap();
            model
                .initialise(&state.layout, &mut state.parameters, 1)
                .unwrap();
            let changed = if rank == 1 { odd } else { 0 };
            for value in &mut state.second_moment.as_mut_slice::<f32>().unwrap()[..changed] {
                *value = 1e-30;
            }
            work(&state, &mut group)
        };
        thread::scope(|scope| {
            let ranks = [0, 1].map(|index| scope.spawn(move || rank(index)));
            ranks.map(|rank| rank.join().unwrap()).into_iter().collect()
        })
    }

    #[test]
    fn replicas_are_compared_before_the_first_step() {
        assert!(on_two_ranks(0, check_replicas).iter().all(Result::is_ok));
        for refused in on_two_ranks(1, check_replicas) {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("do not hold the same"), "{error}");
            assert!(error.ends_with("ranks 1"), "{error}");
        }
    }

    /// Saves the state of one of two ranks.
    fn saved(
        folder: &Path,
        state: &TrainState,
        group: &mut dyn ProcessGroup,
    ) -> Result<Saved, TrainError> {
        let checkpoints = Checkpoints {
            dir: folder.to_owned(),
            plan: write_plan(state, 2)?,
            piece_size: 4096,
            keep: 0,
            deadline: Duration::from_secs(20),
            status: StatusPage::private(),
        };
        let run = RunState {
            step: state.step,
            config_fingerprint: String::new(),
            corpus_fingerprint: String::new(),
            world_size: 2,
            evaluation_due: false,
        };
        checkpoints.save(state, &run, None, group)
    }

    #[test]
    fn replicas_that_differ_are_never_committed_and_end_the_run() {
        let folder = tempfile::tempdir().unwrap();
        let save =
            |state: &TrainState, group: &mut dyn ProcessGroup| saved(folder.path(), state, group);
        for refused in on_two_ranks(1, save) {
            assert!(matches!(refused, Err(TrainError::ReplicasDiffer { .. })));
        }
        assert!(checkpoint::discover(folder.path()).unwrap().is_empty());
        for saved in on_two_ranks(0, save) {
            assert!(matches!(saved, Ok(Saved::Committed { .. })));
        }
        assert_eq!(checkpoint::discover(folder.path()).unwrap().len(), 1);
    }

    /// What each of two ranks has, saved and read again.
    fn saved_and_read(compute: &Compute, parallel: &ParallelConfig) {
        let folder = tempfile::tempdir().unwrap();
        let memory = SharedMemory::create("saved").unwrap();
        let rank = |rank| {
            let memory = memory.try_clone().unwrap();
            let mut group =
                SharedMemoryGroup::join(memory, rank, 2, Duration::from_secs(20)).unwrap();
            let model = model();
            let new = |group: &mut dyn ProcessGroup| {
                TrainState::new(&model, compute, parallel, group).unwrap()
            };
            let shared_out = parallel.shard == Shard::Optimizer;
            let mut state = new(&mut group);
            state.initialise(&model, 1).unwrap();
            for (_, buffer) in state.moments_mut() {
                let mut view = buffer.view_mut(0..buffer.len(), &[buffer.len()]).unwrap();
                // Moments of its own, where a rank has its own.
                let id = if shared_out { rank } else { 0 };
                let stream = random::Stream::new(7, id as u64);
                random::normal_fill(&mut view, stream, 0, 1.0).unwrap();
            }
            let saved = saved(folder.path(), &state, &mut group).unwrap();
            let Saved::Committed { path, .. } = saved else {
                panic!("given up");
            };
            let mut read = new(&mut group);
            restore(&path, &mut read, &StatusPage::private()).unwrap();
            let bytes = |state: &TrainState, buffer: &Buffer, held: &Held| {
                // Padding is nobody's.
                let width = buffer.dtype().size_in_bytes();
                let of = held.tensors(&state.layout).map(|(_, _, place)| {
                    let mut bytes = vec![0; place.len() * width];
                    buffer.read_bytes(place.start * width, &mut bytes).unwrap();
                    bytes
                });
                of.collect::<Vec<_>>()
            };
            for (found, expected) in read.persistent().into_iter().zip(state.persistent()) {
                let (found, expected) = (
                    bytes(&read, found.1, found.2),
                    bytes(&state, expected.1, expected.2),
                );
                assert!(found == expected, "{compute:?}");
            }
            let all = Held::all(state.layout.len());
            assert!(bytes(&read, read.computed(), &all) == bytes(&state, state.computed(), &all));
        };
        thread::scope(|scope| {
            for ranked in [0, 1].map(|index| scope.spawn(move || rank(index))) {
                ranked.join().unwrap();
            }
        });
    }

    #[test]
    fn what_is_saved_is_what_is_read() {
        let mut places = vec![Compute::HOST];
        if Device::gpus() > 0 {
            let device = Device::gpu(0, &GpuOptions::default()).unwrap();
            let all = [
                [DType::F32, DType::F32],
                [DType::Bf16, DType::F32],
                [DType::Bf16, DType::Bf16],
            ];
            places.extend(all.map(|[numbers, states]| Compute {
                device: device.clone(),
                numbers,
                states,
            }));
        }
        for compute in places {
            for shard in [Shard::None, Shard::Optimizer] {
                let parallel = ParallelConfig {
                    shard,
                    bucket_size: ByteSize(1 << 10),
                    ..ParallelConfig::default()
                };
                saved_and_read(&compute, &parallel);
            }
        }
    }
}
