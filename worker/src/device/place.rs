//! What a rank computes on, and in which numbers: one GPU a rank where there are GPUs, by the rank's place on its host.

use anyhow::Result;
use bam_cluster::comm::Communicator;
use bam_cluster::config::{ClusterSection, DeviceKind, Precision};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::comm::host_identity;
use crate::shim;

/// In which numbers products are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// float32.
    Fp32,
    /// float32 with inputs rounded to TensorFloat-32.
    Tf32,
    /// bfloat16.
    Bf16,
}

impl Numbers {
    /// As in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Numbers::Fp32 => "fp32",
            Numbers::Tf32 => "tf32",
            Numbers::Bf16 => "bf16",
        }
    }

    /// What tensors between products hold.
    pub fn kind(self) -> tch::Kind {
        match self {
            Numbers::Fp32 | Numbers::Tf32 => tch::Kind::Float,
            Numbers::Bf16 => tch::Kind::BFloat16,
        }
    }
}

/// What a rank computes on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// In which numbers.
    pub numbers: Numbers,
    /// Whether other ranks compute on the same GPU.
    pub is_shared: bool,
}

/// A device that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// GPUs were asked for, and a rank has none.
    #[error(
        "rank {rank} on {host} sees no GPU: {why}\n  say cluster.device: cpu, or start it where GPUs are (in Slurm: \
         slurm.gpus_per_node), and look at CUDA_VISIBLE_DEVICES; `bam doctor` shows what there is"
    )]
    NoGpu {
        /// The first such rank.
        rank: usize,
        /// Its host.
        host: String,
        /// libtorch's words, or where they come from.
        why: String,
    },
    /// There are more ranks than GPUs.
    #[error(
        "{host} has {gpus} GPU(s) for {ranks} ranks, those of stages that run side by side counted\n  start as many ranks as \
         GPUs (-n), or let ranks share them (cluster.share_gpus: true), which is slower"
    )]
    TooFew {
        /// The host.
        host: String,
        /// GPUs that its ranks see.
        gpus: usize,
        /// Ranks that see them; of stages that run side by side, the highest of this one's places.
        ranks: usize,
    },
    /// These numbers are not for this device.
    #[error("cluster.precision: {precision} is not for {device}; say fp32 or bf16")]
    Precision {
        /// As in a recipe.
        precision: &'static str,
        /// Which device.
        device: String,
    },
}

/// What a rank tells the others about the GPUs that it sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct View {
    host: String,
    /// What tells hosts apart that have one name.
    identity: String,
    /// `CUDA_VISIBLE_DEVICES`, if it is set. Slurm may give each rank another GPU, which all call number 0.
    visible: Option<String>,
    gpus: usize,
    /// Of the oldest of them, times ten: 80 for 8.0.
    capability: Option<i64>,
    /// Why CUDA is not there.
    why: Option<String>,
}

/// Compute capability, times ten, from which on GPUs multiply bf16 fast.
const MULTIPLIES_BF16: i64 = 80;

impl Place {
    /// A core of the processor, in float32.
    pub const CPU: Place = Place { device: Device::Cpu, numbers: Numbers::Fp32, is_shared: false };

    /// What this rank computes on; all ranks decide in the same way, and together. `places`: see [`ControlFile::places`].
    ///
    /// # Errors
    /// What the recipe asks for is not there on some rank, which the error names on all of them.
    ///
    /// [`ControlFile::places`]: bam_cluster::protocol::ControlFile::places
    pub fn choose(world: &dyn Communicator, cluster: &ClusterSection, places: &[usize]) -> Result<Place> {
        let cuda = shim::cuda();
        let gpus = if cuda.is_ok() { usize::try_from(tch::Cuda::device_count()).unwrap_or(0) } else { 0 };
        let view = View {
            host: crate::control::host_name(),
            identity: host_identity(),
            visible: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
            gpus,
            capability: shim::least_capability(gpus),
            why: cuda.as_ref().err().map(ToString::to_string),
        };
        let views = world.all_gather("devices", &serde_json::to_vec(&view)?)?;
        let views: Vec<View> = views.iter().map(|v| serde_json::from_slice(v)).collect::<Result<_, _>>()?;
        let place = decide(&views, world.rank(), cluster, places)?;
        if let Device::Cuda(device) = place.device {
            shim::use_gpu(device);
        }
        Ok(place)
    }

    /// What `cluster.device: auto` has decided, in a sentence.
    pub fn of_auto(&self) -> String {
        let why = if self.is_cuda() { "every rank has a GPU" } else { "not every rank sees a GPU" };
        format!("cluster.device: auto chose {} in {}: {why}", self.name(), self.numbers.name())
    }

    /// As people read it: `cuda:0`.
    pub fn name(&self) -> String {
        match self.device {
            Device::Cuda(index) => format!("cuda:{index}"),
            _ => "cpu".to_owned(),
        }
    }

    /// Whether the device is a GPU.
    pub fn is_cuda(&self) -> bool {
        matches!(self.device, Device::Cuda(_))
    }

    /// Whether the engine of this module computes there.
    pub fn needs_device_engine(&self) -> bool {
        self.is_cuda() || self.numbers == Numbers::Bf16
    }
}

/// What rank `rank` computes on, if ranks see this.
fn decide(views: &[View], rank: usize, cluster: &ClusterSection, places: &[usize]) -> Result<Place, DeviceError> {
    let blind = views.iter().position(|view| view.gpus == 0);
    let wanted = match cluster.device {
        DeviceKind::Cpu => false,
        DeviceKind::Auto => blind.is_none(),
        DeviceKind::Cuda => true,
    };
    if !wanted {
        let numbers = match cluster.precision {
            Precision::Auto | Precision::Fp32 => Numbers::Fp32,
            Precision::Bf16 => Numbers::Bf16,
            Precision::Tf32 => return Err(DeviceError::Precision { precision: "tf32", device: "CPUs".to_owned() }),
        };
        return Ok(Place { numbers, ..Place::CPU });
    }
    if let Some(rank) = blind {
        let view = &views[rank];
        let why = view.why.clone().unwrap_or_else(|| "CUDA is there and finds no device".to_owned());
        return Err(DeviceError::NoGpu { rank, host: view.host.clone(), why });
    }
    let sees_the_same = |a: usize, b: usize| {
        let of = |rank: usize| (&views[rank].identity, &views[rank].visible);
        of(a) == of(b)
    };
    let place = |rank: usize| {
        let position = (0..rank).filter(|&other| sees_the_same(rank, other)).count();
        places.get(position).copied().unwrap_or(position)
    };
    let device = |rank: usize| place(rank) % views[rank].gpus;
    let last = (0..views.len()).filter(|&rank| place(rank) >= views[rank].gpus).max_by_key(|&rank| place(rank));
    if let Some(rank) = last.filter(|_| !cluster.share_gpus) {
        let View { host, gpus, .. } = &views[rank];
        return Err(DeviceError::TooFew { host: host.clone(), gpus: *gpus, ranks: place(rank) + 1 });
    }
    let is_fast = views.iter().all(|view| view.capability.is_some_and(|c| c >= MULTIPLIES_BF16));
    let numbers = match cluster.precision {
        Precision::Auto if is_fast => Numbers::Bf16,
        Precision::Auto | Precision::Fp32 => Numbers::Fp32,
        Precision::Tf32 => Numbers::Tf32,
        Precision::Bf16 if is_fast => Numbers::Bf16,
        Precision::Bf16 => {
            let device = "GPUs of a compute capability below 8.0".to_owned();
            return Err(DeviceError::Precision { precision: "bf16", device });
        }
    };
    // All ranks exchange gradients in the same way: as soon as two of them share a GPU, through the hosts' memory.
    let share = |a: usize, b: usize| sees_the_same(a, b) && device(a) == device(b);
    let is_shared = (0..views.len()).any(|a| (0..a).any(|b| share(a, b)));
    Ok(Place { device: Device::Cuda(device(rank)), numbers, is_shared })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(host: &str, visible: Option<&str>, gpus: usize) -> View {
        View {
            host: host.to_owned(),
            identity: host.to_owned(),
            visible: visible.map(str::to_owned),
            gpus,
            capability: (gpus > 0).then_some(90),
            why: (gpus == 0).then(|| "no driver".to_owned()),
        }
    }

    fn cluster(device: DeviceKind, precision: Precision) -> ClusterSection {
        ClusterSection { device, precision, ..ClusterSection::default() }
    }

    fn devices(views: &[View], cluster: &ClusterSection) -> Vec<Device> {
        (0..views.len()).map(|rank| decide(views, rank, cluster, &[]).unwrap().device).collect()
    }

    #[test]
    fn ranks_of_a_host_take_its_gpus_in_order() {
        let auto = cluster(DeviceKind::Auto, Precision::Auto);
        let views = [view("a", None, 2), view("b", None, 4), view("a", None, 2), view("b", None, 4)];
        assert_eq!(devices(&views, &auto), [Device::Cuda(0), Device::Cuda(0), Device::Cuda(1), Device::Cuda(1)]);
        // Slurm has given each rank a GPU of its own, which it calls 0.
        let views = [view("a", Some("0"), 1), view("a", Some("3"), 1)];
        assert_eq!(devices(&views, &auto), [Device::Cuda(0), Device::Cuda(0)]);
        assert!(!decide(&views, 0, &auto, &[]).unwrap().is_shared);
    }

    #[test]
    fn a_gpu_is_shared_only_if_that_is_asked_for() {
        let mut auto = cluster(DeviceKind::Auto, Precision::Auto);
        let views = [view("a", None, 1), view("a", None, 1)];
        let error = decide(&views, 0, &auto, &[]).unwrap_err();
        assert_eq!(error, DeviceError::TooFew { host: "a".into(), gpus: 1, ranks: 2 });
        auto.share_gpus = true;
        assert_eq!(devices(&views, &auto), [Device::Cuda(0), Device::Cuda(0)]);
        assert!(decide(&views, 1, &auto, &[]).unwrap().is_shared);
    }

    #[test]
    fn stages_side_by_side_have_gpus_of_their_own() {
        let mut auto = cluster(DeviceKind::Auto, Precision::Auto);
        let views = [view("a", None, 8), view("a", None, 8)];
        let devices = |places: &[usize], auto: &ClusterSection| {
            [0, 1].map(|rank| decide(&views, rank, auto, places).map(|place| place.device))
        };
        assert_eq!(devices(&[2, 5], &auto), [2, 5].map(|gpu| Ok(Device::Cuda(gpu))));
        let too_few = Err(DeviceError::TooFew { host: "a".into(), gpus: 8, ranks: 10 });
        assert_eq!(devices(&[8, 9], &auto), [too_few.clone(), too_few]);
        auto.share_gpus = true;
        assert_eq!(devices(&[8, 9], &auto), [0, 1].map(|gpu| Ok(Device::Cuda(gpu))));
        assert!(!decide(&views, 0, &auto, &[8, 9]).unwrap().is_shared);
        assert!(decide(&views, 0, &auto, &[1, 9]).unwrap().is_shared);
    }

    #[test]
    fn without_gpus_auto_takes_cpus_and_cuda_says_what_is_missing() {
        let views = [view("a", None, 1), view("b", None, 0)];
        let auto = cluster(DeviceKind::Auto, Precision::Auto);
        assert_eq!(decide(&views, 0, &auto, &[]).unwrap(), Place::CPU);
        let error = decide(&views, 0, &cluster(DeviceKind::Cuda, Precision::Auto), &[]).unwrap_err().to_string();
        assert!(error.starts_with("rank 1 on b sees no GPU: no driver\n"), "{error}");
    }

    #[test]
    fn numbers_are_those_that_the_device_is_good_at() {
        let of = |gpus: usize, capability: i64, precision| {
            let views = [View { capability: Some(capability), ..view("a", None, gpus) }];
            decide(&views, 0, &cluster(DeviceKind::Auto, precision), &[]).map(|place| place.numbers)
        };
        assert_eq!(of(1, 90, Precision::Auto), Ok(Numbers::Bf16));
        assert_eq!(of(1, 70, Precision::Auto), Ok(Numbers::Fp32));
        assert!(of(1, 70, Precision::Bf16).is_err());
        assert_eq!(of(1, 90, Precision::Tf32), Ok(Numbers::Tf32));
        assert_eq!(of(0, 0, Precision::Bf16), Ok(Numbers::Bf16));
        assert_eq!(of(0, 0, Precision::Auto), Ok(Numbers::Fp32));
        assert!(of(0, 0, Precision::Tf32).is_err());
    }
}
