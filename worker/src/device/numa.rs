//! Whether a rank runs on cores that are near its GPU: copies and kernel launches from another socket are slower.

use std::collections::BTreeSet;
use std::fs;

use tch::Device;

use super::place::Place;
use crate::shim;

/// What there is to say about a rank's cores and its GPU; nothing on CPUs, or where the system does not tell.
pub fn binding(place: Place) -> Option<Result<String, String>> {
    let Device::Cuda(device) = place.device else { return None };
    let bus = shim::pci_bus_id(device)?.to_lowercase();
    let node: i64 = read(&format!("/sys/bus/pci/devices/{bus}/numa_node"))?.parse().ok()?;
    let near = read(&format!("/sys/devices/system/node/node{node}/cpulist"))?;
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
    Some(judge(&format!("{} ({bus})", place.name()), node, &near, &allowed))
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// `near`: the cores of the GPU's NUMA node; `allowed`: those that the rank may use. Both as the kernel writes them.
fn judge(gpu: &str, node: i64, near: &str, allowed: &str) -> Result<String, String> {
    let (near_cores, allowed_cores) = (cores(near), cores(allowed));
    if allowed_cores.is_disjoint(&near_cores) {
        return Err(format!(
            "{gpu} is next to cores {near} (NUMA node {node}), and this rank may use cores {allowed} alone: bind ranks to cores \
             near their GPUs (mpirun: --map-by, --bind-to; Slurm: --gpu-bind=closest, --cpu-bind)"
        ));
    }
    let bound = if allowed_cores.is_subset(&near_cores) { "uses these alone" } else { "may use others, too" };
    Ok(format!("{gpu} is next to cores {near} (NUMA node {node}); its rank {bound}"))
}

/// `0-3,8` as numbers.
fn cores(list: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_far_from_its_gpu_is_told() {
        assert_eq!(cores("0-2,8"), BTreeSet::from([0, 1, 2, 8]));
        assert!(judge("cuda:0", 1, "32-63", "32-35").unwrap().ends_with("its rank uses these alone"));
        assert!(judge("cuda:0", 0, "0-31", "0-63").unwrap().ends_with("may use others, too"));
        assert!(judge("cuda:0", 1, "32-63", "0-31").unwrap_err().contains("--gpu-bind=closest"));
    }
}
