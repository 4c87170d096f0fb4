//! A model in training on a device: gradients are added up while the backward pass goes on, and the host waits for the device
//! twice a step: when its own gradient is there, and when everybody's is.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use bam_cluster::comm::{Activity, Communicator};
use bam_cluster::config::{OptimizerKind, ReducePrecision, Reproducible};
use tch::{Device, Kind, Tensor};

use super::adam::{Adam, moments};
use super::batch::upload;
use super::bert::DeviceBert;
use super::lamb::Lamb;
use super::micro_batch::unless_out_of_memory;
use super::parameters::download;
use super::place::{Numbers, Place};
use super::reduction::{DeviceReduction, global_norm, read};
use crate::comm::nccl::{Library, Nccl};
use crate::comm::{DeviceReducer, Staged};
use crate::eval::Scorer;
use crate::gradient::{LOSS_SLOT, Reduced, TASK_LOSSES_SLOT, Tail, tail_length};
use crate::model::{Bert, ParameterSpec, Sequence};
use crate::objective::Targets;
use crate::optim::Span;
use crate::shim;
use crate::snapshot::{one_file, read_moments, read_values};
use crate::train::{Clock, Item, Learner, Objective, Part, Shard, Tensors};

/// A model in training on a GPU, or in bfloat16 on a CPU.
pub struct DeviceLearner {
    model: DeviceBert,
    moments: [Tensor; 2],
    optimizer: DeviceOptimizer,
    reduction: DeviceReduction,
    place: Place,
    tasks: usize,
    tokens_at_once: Option<usize>,
    /// What the host knows of this step's losses; the losses themselves are on the device.
    tail: Tail,
    /// Losses of this step on the device, and whose they are: task and example.
    losses: Vec<(Tensor, Vec<(usize, usize)>)>,
}

enum DeviceOptimizer {
    Adam(Adam),
    Lamb(Lamb),
}

/// How the ranks of a training work together.
pub struct Together<'a> {
    /// All ranks.
    pub world: &'a dyn Communicator,
    /// What leaves every bit as it is.
    pub reproducible: Reproducible,
    /// Parts of a batch, with `reproducible: world-size`.
    pub virtual_shards: usize,
    /// What adds up gradients.
    pub exchange: Exchange,
    /// In which numbers.
    pub reduce_precision: ReducePrecision,
}

/// How the ranks' devices exchange gradients.
pub enum Exchange {
    /// From device to device.
    Nccl(Nccl),
    /// Through the hosts' memory.
    Staged(Staged),
}

impl Exchange {
    /// NCCL where every rank has a GPU of its own and is not alone, else the hosts' memory. With NCCL `deadline` goes for the
    /// beginning and for every collective.
    ///
    /// # Errors
    /// NCCL cannot be had on some rank, or a collective did not come about.
    pub fn open(world: &dyn Communicator, place: Place, deadline: Duration, activity: Activity) -> Result<Exchange> {
        match place.device {
            Device::Cuda(device) if !place.is_shared && world.size() > 1 => {
                Ok(Exchange::Nccl(Nccl::join(Library::find(), world, device as i32, deadline, activity)?))
            }
            _ => Ok(Exchange::Staged(Staged(world.split("all ranks", 0)?))),
        }
    }

    /// As what adds up parts of a gradient.
    pub fn reducer(&self) -> &dyn DeviceReducer {
        match self {
            Exchange::Nccl(nccl) => nccl,
            Exchange::Staged(staged) => staged,
        }
    }
}

impl DeviceLearner {
    /// A training of a copy of `model`, which has its first values, at `place`.
    ///
    /// # Errors
    /// libtorch refuses a setting.
    pub fn new(
        model: &mut Bert,
        place: Place,
        kind: OptimizerKind,
        spans: &[Span],
        together: Together,
    ) -> Result<DeviceLearner> {
        shim::allow_tf32(place.numbers == Numbers::Tf32)?;
        // A stop must not show on GPUs either, as far as their kernels allow it.
        shim::set_deterministic(true)?;
        let tasks = model.heads().len();
        let layers = model.config().num_hidden_layers;
        let words = [model.config().vocab_size, model.config().hidden_size];
        let model = DeviceBert::trainable(model, place, tail_length(tasks));
        let p = model.parameters();
        let moments = moments(p.len(), place.device);
        let flat = [p.values(), &p.gradients(), &moments[0], &moments[1]];
        let optimizer = match kind {
            OptimizerKind::BertAdam | OptimizerKind::AdamW => DeviceOptimizer::Adam(Adam::new(kind, spans, flat)),
            OptimizerKind::Lamb => DeviceOptimizer::Lamb(Lamb::new(spans, flat)),
        };
        let cuts: Vec<usize> = (0..layers).rev().map(|layer| model.start_of_layer(layer)).collect();
        let reduction = DeviceReduction::new(together, p.len(), words, &cuts);
        let tail = Tail::new(tasks);
        Ok(DeviceLearner {
            moments,
            optimizer,
            reduction,
            place,
            tasks,
            tokens_at_once: None,
            tail,
            losses: vec![],
            model,
        })
    }

    /// How gradients are added up, for the log.
    pub fn reduces_by(&self) -> String {
        self.reduction.name()
    }

    /// From now on no micro-batch has more tokens than that.
    pub fn compute_at_once(&mut self, tokens: usize) {
        self.tokens_at_once = Some(tokens);
    }

    /// Whether a micro-batch of `tokens` tokens in sequences of `length` fits into the device's memory, beside what is there
    /// already. Changes nothing but gradients.
    ///
    /// # Errors
    /// The device fails in another way.
    pub fn fits(&mut self, tokens: usize, length: usize, objective: &Objective) -> Result<bool> {
        let Device::Cuda(device) = self.place.device else { return Ok(true) };
        shim::forget_cuda_peak(device)?;
        let (words, types) = (vec![0i32; length], vec![0u8; length]);
        let item = |i: usize| Item {
            task: i % objective.kinds.len(),
            example: 0,
            sequence: Sequence { tokens: &words, types: &types },
            gold: 0.0,
            teacher: None,
            dropout: crate::model::StepSeed::new(0, 0).example(i),
        };
        let items: Vec<Item> = (0..tokens.div_ceil(length)).map(item).collect();
        let done = unless_out_of_memory(|| {
            self.model.zero_what_is_added_to();
            let total = self.forward(&items, objective, 1.0)?;
            self.finish_backward(total, true, false)?;
            tch::Cuda::synchronize(device as i64);
            Ok(())
        });
        self.losses.clear();
        self.tail = Tail::new(self.tasks);
        Ok(done?.is_some())
    }

    /// A forward pass with its losses, which are added to the tail on the device.
    fn forward(&mut self, items: &[Item], objective: &Objective, lambda: f64) -> Result<(super::bert::Pass, Tensor)> {
        let sequences: Vec<Sequence> = items.iter().map(|i| i.sequence).collect();
        let pass = self.model.encode(self.model.batch(&sequences))?;
        let pooled = self.model.pooled_in_training(&pass);
        let mut total: Option<Tensor> = None;
        for (task, kind) in objective.kinds.iter().enumerate() {
            let rows: Vec<usize> = (0..items.len()).filter(|&row| items[row].task == task).collect();
            if rows.is_empty() {
                continue;
            }
            let examples: Vec<&Item> = rows.iter().map(|&row| &items[row]).collect();
            let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
            let index = upload(&Tensor::from_slice(&index), self.place.device);
            let outputs = self.model.head(task, &pooled.index_select(0, &index));
            let targets = Targets::of(&examples, kind.outputs(), self.place.device);
            let losses = objective.losses(kind, &outputs, &targets, lambda);
            let sum = losses.sum(Kind::Float);
            self.add_to_tail(TASK_LOSSES_SLOT + task, &sum);
            self.tail.task_counts[task] += rows.len() as f32;
            self.losses.push((losses.detach(), examples.iter().map(|item| (item.task, item.example)).collect()));
            let part = sum * (objective.weights[task] / objective.divisor);
            total = Some(match total {
                Some(total) => total + part,
                None => part,
            });
        }
        self.tail.tokens += sequences.iter().map(|s| s.tokens.len()).sum::<usize>() as f32;
        let total = total.unwrap_or_else(|| Tensor::zeros([], (Kind::Float, self.place.device)));
        self.add_to_tail(LOSS_SLOT, &total);
        Ok((pass, total))
    }

    /// The backward pass of what [`forward`](Self::forward) returned. With `is_last` gradients are sent as they get ready.
    fn finish_backward(
        &mut self,
        (pass, total): (super::bert::Pass, Tensor),
        is_first: bool,
        is_last: bool,
    ) -> Result<()> {
        total.backward();
        let gradients = self.model.parameters().gradients_and_tail().shallow_clone();
        let reduction = &mut self.reduction;
        self.model.backward(
            pass,
            is_first,
            |start| {
                if is_last { reduction.complete_from(&gradients, start) } else { Ok(()) }
            },
        )
    }

    /// Adds what the host knows to the tail on the device.
    fn add_known(&self, known: &Tail) {
        let mut slots = vec![0.0; tail_length(self.tasks)];
        known.write(&mut slots);
        let mut tail = self.tail_on_device();
        tail += upload(&Tensor::from_slice(&slots), self.place.device);
    }

    fn add_to_tail(&self, slot: usize, value: &Tensor) {
        let mut place = self.tail_on_device().get(slot as i64);
        place += value.detach();
    }

    fn tail_on_device(&self) -> Tensor {
        let p = self.model.parameters();
        p.gradients_and_tail().narrow(0, p.len() as i64, tail_length(self.tasks) as i64)
    }
}

impl Learner for DeviceLearner {
    fn shards(&self) -> usize {
        self.reduction.shards()
    }

    fn own(&self) -> Range<usize> {
        self.reduction.own()
    }

    fn tokens_at_once(&self) -> Option<usize> {
        self.tokens_at_once
    }

    fn differentiate(&mut self, shard: &Shard, objective: &Objective, lambda: f64, clock: &mut Clock) -> Result<()> {
        if shard.number == self.own().start {
            self.losses.clear();
        }
        self.tail = Tail::new(self.tasks);
        self.model.zero_what_is_added_to();
        if shard.micro_batches.is_empty() {
            let _ = self.model.parameters().gradients_and_tail().shallow_clone().zero_();
        }
        let last = shard.micro_batches.len();
        for (i, items) in shard.micro_batches.iter().enumerate() {
            clock.progress();
            let start = Instant::now();
            // Masks follow from seed and step, and from the place of the first example in the batch.
            tch::manual_seed(items[0].dropout.seed());
            self.reduction.touch(items.iter().flat_map(|i| i.sequence.tokens).map(|&word| word as u32));
            let total = self.forward(items, objective, lambda)?;
            let middle = Instant::now();
            self.finish_backward(total, i == 0, i + 1 == last)?;
            clock.add(Part::Forward, start, middle);
            clock.add(Part::Backward, middle, Instant::now());
        }
        self.add_known(&self.tail);
        self.reduction.take(shard.number, self.model.parameters().gradients_and_tail());
        Ok(())
    }

    fn agree(&mut self, world: &dyn Communicator, stop: bool, clock: &mut Clock) -> Result<()> {
        clock.time(Part::Waiting, || self.reduction.agree(world))?;
        let wish = Tail { stop: f32::from(u8::from(stop)), ..Tail::new(self.tasks) };
        self.add_known(&wish);
        // Until here the device was only told what to do. What it still has to do is mostly the backward pass.
        clock.time(Part::Backward, || read(&self.tail_on_device().get(LOSS_SLOT as i64)));
        Ok(())
    }

    fn reduce(&mut self, world: &dyn Communicator) -> Result<(Tail, Reduced)> {
        let p = self.model.parameters();
        let values = self.reduction.finish(world, p.gradients_and_tail(), p.len())?;
        let norm = global_norm(&p.gradients()).view([1]);
        let known = read(&Tensor::cat(&[norm, self.tail_on_device().to_kind(Kind::Double)], 0));
        let tail: Vec<f32> = known[1..].iter().map(|v| *v as f32).collect();
        Ok((Tail::read(&tail), Reduced { values, norm: known[0] }))
    }

    fn diverged(&self) -> Vec<(usize, usize)> {
        let not_finite = |(losses, whose): &(Tensor, Vec<(usize, usize)>)| {
            let bad = read(losses).into_iter().zip(whose.clone()).filter(|(loss, _)| !loss.is_finite());
            bad.map(|(_, who)| who).collect::<Vec<_>>()
        };
        self.losses.iter().flat_map(not_finite).collect()
    }

    fn update(&mut self, scale: f64, rate: f64, step: u64) -> Result<()> {
        tch::no_grad(|| match &self.optimizer {
            DeviceOptimizer::Adam(adam) => adam.step(scale, rate, step),
            DeviceOptimizer::Lamb(lamb) => {
                lamb.step(scale, rate, step);
                Ok(())
            }
        })?;
        self.model.parameters_mut().refresh();
        Ok(())
    }

    fn shape(&self) -> (&[ParameterSpec], &[Range<usize>]) {
        (self.model.parameters().specs(), self.model.parameters().ranges())
    }

    fn tensors(&mut self) -> Tensors<'_> {
        let [first, second] = &self.moments;
        [self.model.parameters().values(), first, second].map(|t| Cow::Owned(download(t)))
    }

    fn values(&mut self) -> Cow<'_, [f32]> {
        Cow::Owned(self.model.parameters().download())
    }

    fn restore(&mut self, model: &Path, optimizer: &Path) -> Result<()> {
        let p = self.model.parameters();
        let (specs, ranges) = (p.specs().to_vec(), p.ranges().to_vec());
        let mut values = vec![0f32; p.len()];
        read_values(&one_file(model), &specs, &ranges, &mut values)?;
        self.model.parameters_mut().set_values(&values);
        let (mut first, mut second) = (vec![0f32; values.len()], vec![0f32; values.len()]);
        read_moments(optimizer, (&specs, &ranges), (&mut first, &mut second))?;
        for (moments, read) in self.moments.iter_mut().zip([first, second]) {
            moments.copy_(&Tensor::from_slice(&read));
        }
        Ok(())
    }

    fn scorer(&self) -> &dyn Scorer {
        &self.model
    }

    fn peak_memory(&self) -> Option<u64> {
        let Device::Cuda(device) = self.place.device else { return None };
        shim::cuda_memory(device).ok().map(|memory| memory.peak)
    }
}
