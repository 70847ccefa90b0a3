//! How long the turns of a GPU's shares are. The driver takes a length for a whole GPU alone, and a GPU whose driver takes
//! none is shared all the same, with a word.

use crate::config::{Mode, Rule, TimeSlice};
use crate::discover::files::join_root;
use crate::time_slices::Wanted;

use super::unit::Unit;
use super::{Cutting, Plan};

/// Notes in the plan what the driver is to be told; gives the length, where it is.
pub fn plan(unit: &Unit<'_>, rule: &Rule, cutting: &Cutting<'_>, plan: &mut Plan) -> Option<TimeSlice> {
    let length = rule.time_slice.filter(|_| rule.mode == Mode::TimeSlice)?;
    let what = unit.what();
    let Unit::Gpu(gpu) = unit else {
        plan.warnings.push(format!(
            "{}: time_slice says nothing of {what}: NVIDIA's driver has lengths for whole GPUs alone",
            rule.place
        ));
        return None;
    };
    let Some(program) = &cutting.host.nvidia_smi else {
        plan.warnings.push(format!(
            "{}: time slices of {what} stay as they are: nvidia-smi, which sets them, is not installed where drivers have their programs",
            rule.place
        ));
        return None;
    };
    let root = cutting.places.driver_root;
    let nvml =
        cutting.host.driver_files.libraries.iter().find(|library| library.soname == "libnvidia-ml.so.1");
    let libraries = nvml.and_then(|library| library.path.parent()).filter(|_| root != "/");
    plan.time_slices.push(Wanted {
        uuid: gpu.uuid.clone(),
        what,
        length,
        program: join_root(root, program),
        libraries: libraries.map(|directory| join_root(root, directory)),
    });
    Some(length)
}
