//! What is refused, and how that is said.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use nagaya_vmm::control::{ControlError, ErrorCode};

use crate::objects::handle::Handle;
use crate::objects::vm::Vm;

pub(super) fn refuse(code: ErrorCode, text: impl Into<String>) -> ControlError {
    ControlError::new(code, text)
}

/// A VM of `vcpus` vCPUs has none of that number.
pub(super) fn no_vcpu(vcpus: u32, vcpu: u32) -> ControlError {
    refuse(
        ErrorCode::NoSuchVm,
        format!("it has {vcpus} vCPUs, and none with number {vcpu}"),
    )
}

/// A vCPU by its number.
pub(super) fn find_vcpu(vm: &Vm, vcpu: u32) -> Result<&Arc<Handle>, ControlError> {
    vm.vcpus
        .get(vcpu as usize)
        .ok_or_else(|| no_vcpu(vm.config.vcpus, vcpu))
}
