//! The fields themselves, by area: controls, exit information, guest state, host state.
//!
//! Source: SDM volume 3, appendix B. Not every CPU has every field: VMREAD and VMWRITE of an absent one fail with instruction
//! error 12.

use super::{Field, Natural, ReadOnly, ReadWrite, W16, W32, W64};

/// Defines the fields of one area and the table of all of them.
macro_rules! fields {
    (
        $(#[$table_doc:meta])*
        $table:ident, $access:ident:
        $( $width:ident $name:ident = $encoding:literal, $doc:literal; )*
    ) => {
        $(
            #[doc = $doc]
            pub const $name: Field<$width, $access> = Field::new($encoding, stringify!($name));
        )*

        $(#[$table_doc])*
        pub const $table: &[(u32, &str)] = &[$( ($encoding, stringify!($name)) ),*];
    };
}

fields! {
    /// All control fields: encoding and name.
    ALL_CONTROLS, ReadWrite:
    // 16-bit control fields.
    W16 VPID = 0x0000, "Virtual-processor identifier; not 0.";
    W16 POSTED_INTERRUPT_NOTIFICATION_VECTOR = 0x0002, "Vector of posted-interrupt notifications.";
    W16 EPTP_INDEX = 0x0004, "Index into the EPTP list.";
    W16 HLAT_PREFIX_SIZE = 0x0006, "Bits of a linear address that select HLAT paging.";
    W16 LAST_PID_POINTER_INDEX = 0x0008, "Last index of the PID-pointer table.";
    // 64-bit control fields.
    W64 IO_BITMAP_A = 0x2000, "Physical address of the bitmap of ports 0 to 0x7FFF.";
    W64 IO_BITMAP_B = 0x2002, "Physical address of the bitmap of ports 0x8000 to 0xFFFF.";
    W64 MSR_BITMAPS = 0x2004, "Physical address of the four MSR bitmaps (one page).";
    W64 EXIT_MSR_STORE_ADDRESS = 0x2006, "Physical address of the list of MSRs stored on exit.";
    W64 EXIT_MSR_LOAD_ADDRESS = 0x2008, "Physical address of the list of MSRs loaded on exit.";
    W64 ENTRY_MSR_LOAD_ADDRESS = 0x200A, "Physical address of the list of MSRs loaded on entry.";
    W64 EXECUTIVE_VMCS_POINTER = 0x200C, "Executive-VMCS pointer (dual-monitor treatment of SMM).";
    W64 PML_ADDRESS = 0x200E, "Physical address of the page-modification log.";
    W64 TSC_OFFSET = 0x2010, "What is added to the TSC that the guest reads.";
    W64 VIRTUAL_APIC_ADDRESS = 0x2012, "Physical address of the virtual-APIC page.";
    W64 APIC_ACCESS_ADDRESS = 0x2014, "Physical address of the APIC-access page.";
    W64 POSTED_INTERRUPT_DESCRIPTOR = 0x2016, "Physical address of the posted-interrupt descriptor.";
    W64 VM_FUNCTION_CONTROLS = 0x2018, "Which VM functions are enabled.";
    W64 EPT_POINTER = 0x201A, "Root and format of the EPT (`crate::ept`).";
    W64 EOI_EXIT_BITMAP_0 = 0x201C, "Vectors 0 to 63 whose EOI exits.";
    W64 EOI_EXIT_BITMAP_1 = 0x201E, "Vectors 64 to 127 whose EOI exits.";
    W64 EOI_EXIT_BITMAP_2 = 0x2020, "Vectors 128 to 191 whose EOI exits.";
    W64 EOI_EXIT_BITMAP_3 = 0x2022, "Vectors 192 to 255 whose EOI exits.";
    W64 EPTP_LIST_ADDRESS = 0x2024, "Physical address of the EPTP list.";
    W64 VMREAD_BITMAP = 0x2026, "Physical address of the VMREAD bitmap.";
    W64 VMWRITE_BITMAP = 0x2028, "Physical address of the VMWRITE bitmap.";
    W64 VIRTUALIZATION_EXCEPTION_INFO = 0x202A, "Physical address of the virtualization-exception area.";
    W64 XSS_EXITING_BITMAP = 0x202C, "Which bits of IA32_XSS make XSAVES and XRSTORS exit.";
    W64 ENCLS_EXITING_BITMAP = 0x202E, "Which leaves of ENCLS exit.";
    W64 SUB_PAGE_PERMISSION_TABLE = 0x2030, "Physical address of the sub-page-permission table.";
    W64 TSC_MULTIPLIER = 0x2032, "By what the TSC that the guest reads is scaled, as a 16.48 fixed-point number.";
    W64 TERTIARY_CONTROLS = 0x2034, "Tertiary processor-based controls.";
    W64 ENCLV_EXITING_BITMAP = 0x2036, "Which leaves of ENCLV exit.";
    W64 LOW_PASID_DIRECTORY = 0x2038, "Physical address of the low PASID directory.";
    W64 HIGH_PASID_DIRECTORY = 0x203A, "Physical address of the high PASID directory.";
    W64 SHARED_EPT_POINTER = 0x203C, "Shared EPT pointer (trust domains).";
    W64 PCONFIG_EXITING_BITMAP = 0x203E, "Which leaves of PCONFIG exit.";
    W64 HLAT_POINTER = 0x2040, "Hypervisor-managed linear-address translation pointer.";
    W64 PID_POINTER_TABLE = 0x2042, "Physical address of the PID-pointer table.";
    W64 SECONDARY_EXIT_CONTROLS = 0x2044, "Secondary exit controls.";
    W64 SPEC_CTRL_MASK = 0x204A, "Which bits of IA32_SPEC_CTRL the guest cannot change.";
    W64 SPEC_CTRL_SHADOW = 0x204C, "What the guest reads of IA32_SPEC_CTRL.";
    // 32-bit control fields.
    W32 PIN_BASED_CONTROLS = 0x4000, "Pin-based controls (`crate::controls::PinBased`).";
    W32 PRIMARY_CONTROLS = 0x4002, "Primary processor-based controls (`crate::controls::Primary`).";
    W32 EXCEPTION_BITMAP = 0x4004, "Which exceptions exit, by vector.";
    W32 PAGE_FAULT_ERROR_CODE_MASK = 0x4006, "Mask of the error code by which page faults are selected for exits.";
    W32 PAGE_FAULT_ERROR_CODE_MATCH = 0x4008, "Value of the masked error code by which page faults are selected for exits.";
    W32 CR3_TARGET_COUNT = 0x400A, "How many of the CR3-target values are in use.";
    W32 EXIT_CONTROLS = 0x400C, "Exit controls (`crate::controls::Exit`).";
    W32 EXIT_MSR_STORE_COUNT = 0x400E, "Number of MSRs stored on exit.";
    W32 EXIT_MSR_LOAD_COUNT = 0x4010, "Number of MSRs loaded on exit.";
    W32 ENTRY_CONTROLS = 0x4012, "Entry controls (`crate::controls::Entry`).";
    W32 ENTRY_MSR_LOAD_COUNT = 0x4014, "Number of MSRs loaded on entry.";
    W32 ENTRY_INTERRUPTION_INFO = 0x4016, "Event injected on the next entry (`crate::interrupt::EventInjection`).";
    W32 ENTRY_EXCEPTION_ERROR_CODE = 0x4018, "Error code of the injected exception.";
    W32 ENTRY_INSTRUCTION_LENGTH = 0x401A, "Instruction length in bytes of an injected software event.";
    W32 TPR_THRESHOLD = 0x401C, "Below which virtual TPR an exit happens.";
    W32 SECONDARY_CONTROLS = 0x401E, "Secondary processor-based controls (`crate::controls::Secondary`).";
    W32 PLE_GAP = 0x4020, "Most ticks between two PAUSEs of one loop.";
    W32 PLE_WINDOW = 0x4022, "Most ticks a loop of PAUSEs may take.";
    W32 INSTRUCTION_TIMEOUT = 0x4024, "Ticks after which an instruction that lets nothing through exits.";
    // Natural-width control fields.
    Natural CR0_GUEST_HOST_MASK = 0x6000, "Bits of CR0 that the host owns.";
    Natural CR4_GUEST_HOST_MASK = 0x6002, "Bits of CR4 that the host owns.";
    Natural CR0_READ_SHADOW = 0x6004, "What the guest reads of the bits of CR0 that the host owns.";
    Natural CR4_READ_SHADOW = 0x6006, "What the guest reads of the bits of CR4 that the host owns.";
    Natural CR3_TARGET_VALUE_0 = 0x6008, "First CR3 value whose loading does not exit.";
    Natural CR3_TARGET_VALUE_1 = 0x600A, "Second CR3 value whose loading does not exit.";
    Natural CR3_TARGET_VALUE_2 = 0x600C, "Third CR3 value whose loading does not exit.";
    Natural CR3_TARGET_VALUE_3 = 0x600E, "Fourth CR3 value whose loading does not exit.";
}

fields! {
    /// All fields that report on an exit: encoding and name.
    ALL_EXIT_INFORMATION, ReadOnly:
    W64 GUEST_PHYSICAL_ADDRESS = 0x2400, "Guest-physical address of an EPT violation or misconfiguration.";
    W32 VM_INSTRUCTION_ERROR = 0x4400, "Why the last VMX instruction failed (`crate::exit::InstructionError`).";
    W32 EXIT_REASON = 0x4402, "Exit reason (`crate::exit::ExitReason`).";
    W32 EXIT_INTERRUPTION_INFO = 0x4404, "The event that caused the exit (`crate::interrupt::InterruptionInfo`).";
    W32 EXIT_INTERRUPTION_ERROR_CODE = 0x4406, "Its error code.";
    W32 IDT_VECTORING_INFO = 0x4408, "The event whose delivery the exit interrupted (`crate::interrupt::InterruptionInfo`).";
    W32 IDT_VECTORING_ERROR_CODE = 0x440A, "Its error code.";
    W32 EXIT_INSTRUCTION_LENGTH = 0x440C, "Length in bytes of the instruction that exited.";
    W32 EXIT_INSTRUCTION_INFO = 0x440E, "Operands of the instruction that exited.";
    Natural EXIT_QUALIFICATION = 0x6400, "Details by exit reason (`crate::exit`).";
    Natural IO_RCX = 0x6402, "RCX before an SMI inside an I/O instruction.";
    Natural IO_RSI = 0x6404, "RSI before an SMI inside an I/O instruction.";
    Natural IO_RDI = 0x6406, "RDI before an SMI inside an I/O instruction.";
    Natural IO_RIP = 0x6408, "RIP before an SMI inside an I/O instruction.";
    Natural GUEST_LINEAR_ADDRESS = 0x640A, "Linear address of the access that exited.";
}

fields! {
    /// All guest-state fields: encoding and name, for dumps.
    ALL_GUEST_STATE, ReadWrite:
    // 16-bit guest-state fields.
    W16 GUEST_ES_SELECTOR = 0x0800, "Selector of ES.";
    W16 GUEST_CS_SELECTOR = 0x0802, "Selector of CS.";
    W16 GUEST_SS_SELECTOR = 0x0804, "Selector of SS.";
    W16 GUEST_DS_SELECTOR = 0x0806, "Selector of DS.";
    W16 GUEST_FS_SELECTOR = 0x0808, "Selector of FS.";
    W16 GUEST_GS_SELECTOR = 0x080A, "Selector of GS.";
    W16 GUEST_LDTR_SELECTOR = 0x080C, "Selector of LDTR.";
    W16 GUEST_TR_SELECTOR = 0x080E, "Selector of TR.";
    W16 GUEST_INTERRUPT_STATUS = 0x0810, "Requesting (RVI, bits 7:0) and servicing (SVI, bits 15:8) virtual interrupt.";
    W16 PML_INDEX = 0x0812, "Next entry of the page-modification log.";
    W16 GUEST_UINV = 0x0814, "User-interrupt notification vector.";
    // 64-bit guest-state fields.
    W64 VMCS_LINK_POINTER = 0x2800, "Physical address of the shadow VMCS; all ones for none.";
    W64 GUEST_IA32_DEBUGCTL = 0x2802, "IA32_DEBUGCTL.";
    W64 GUEST_IA32_PAT = 0x2804, "IA32_PAT.";
    W64 GUEST_IA32_EFER = 0x2806, "IA32_EFER.";
    W64 GUEST_IA32_PERF_GLOBAL_CTRL = 0x2808, "IA32_PERF_GLOBAL_CTRL.";
    W64 GUEST_PDPTE_0 = 0x280A, "First PDPTE under PAE paging.";
    W64 GUEST_PDPTE_1 = 0x280C, "Second PDPTE under PAE paging.";
    W64 GUEST_PDPTE_2 = 0x280E, "Third PDPTE under PAE paging.";
    W64 GUEST_PDPTE_3 = 0x2810, "Fourth PDPTE under PAE paging.";
    W64 GUEST_IA32_BNDCFGS = 0x2812, "IA32_BNDCFGS.";
    W64 GUEST_IA32_RTIT_CTL = 0x2814, "IA32_RTIT_CTL.";
    W64 GUEST_IA32_LBR_CTL = 0x2816, "IA32_LBR_CTL.";
    W64 GUEST_IA32_PKRS = 0x2818, "IA32_PKRS.";
    // 32-bit guest-state fields.
    W32 GUEST_ES_LIMIT = 0x4800, "Limit of ES in bytes.";
    W32 GUEST_CS_LIMIT = 0x4802, "Limit of CS in bytes.";
    W32 GUEST_SS_LIMIT = 0x4804, "Limit of SS in bytes.";
    W32 GUEST_DS_LIMIT = 0x4806, "Limit of DS in bytes.";
    W32 GUEST_FS_LIMIT = 0x4808, "Limit of FS in bytes.";
    W32 GUEST_GS_LIMIT = 0x480A, "Limit of GS in bytes.";
    W32 GUEST_LDTR_LIMIT = 0x480C, "Limit of LDTR in bytes.";
    W32 GUEST_TR_LIMIT = 0x480E, "Limit of TR in bytes.";
    W32 GUEST_GDTR_LIMIT = 0x4810, "Limit of GDTR in bytes.";
    W32 GUEST_IDTR_LIMIT = 0x4812, "Limit of IDTR in bytes.";
    W32 GUEST_ES_ACCESS_RIGHTS = 0x4814, "Access rights of ES.";
    W32 GUEST_CS_ACCESS_RIGHTS = 0x4816, "Access rights of CS.";
    W32 GUEST_SS_ACCESS_RIGHTS = 0x4818, "Access rights of SS.";
    W32 GUEST_DS_ACCESS_RIGHTS = 0x481A, "Access rights of DS.";
    W32 GUEST_FS_ACCESS_RIGHTS = 0x481C, "Access rights of FS.";
    W32 GUEST_GS_ACCESS_RIGHTS = 0x481E, "Access rights of GS.";
    W32 GUEST_LDTR_ACCESS_RIGHTS = 0x4820, "Access rights of LDTR.";
    W32 GUEST_TR_ACCESS_RIGHTS = 0x4822, "Access rights of TR.";
    W32 GUEST_INTERRUPTIBILITY = 0x4824, "What is blocked: by STI, MOV SS, SMI, NMI (`crate::interrupt::Interruptibility`).";
    W32 GUEST_ACTIVITY_STATE = 0x4826, "0 active, 1 HLT, 2 shutdown, 3 wait for SIPI.";
    W32 GUEST_SMBASE = 0x4828, "SMBASE.";
    W32 GUEST_IA32_SYSENTER_CS = 0x482A, "IA32_SYSENTER_CS.";
    W32 PREEMPTION_TIMER_VALUE = 0x482E, "What is left of the preemption timer, in units of 2^n TSC ticks (`crate::msr::VmxMisc`).";
    // Natural-width guest-state fields.
    Natural GUEST_CR0 = 0x6800, "CR0.";
    Natural GUEST_CR3 = 0x6802, "CR3.";
    Natural GUEST_CR4 = 0x6804, "CR4.";
    Natural GUEST_ES_BASE = 0x6806, "Base of ES.";
    Natural GUEST_CS_BASE = 0x6808, "Base of CS.";
    Natural GUEST_SS_BASE = 0x680A, "Base of SS.";
    Natural GUEST_DS_BASE = 0x680C, "Base of DS.";
    Natural GUEST_FS_BASE = 0x680E, "Base of FS.";
    Natural GUEST_GS_BASE = 0x6810, "Base of GS.";
    Natural GUEST_LDTR_BASE = 0x6812, "Base of LDTR.";
    Natural GUEST_TR_BASE = 0x6814, "Base of TR.";
    Natural GUEST_GDTR_BASE = 0x6816, "Base of GDTR.";
    Natural GUEST_IDTR_BASE = 0x6818, "Base of IDTR.";
    Natural GUEST_DR7 = 0x681A, "DR7.";
    Natural GUEST_RSP = 0x681C, "RSP.";
    Natural GUEST_RIP = 0x681E, "RIP.";
    Natural GUEST_RFLAGS = 0x6820, "RFLAGS.";
    Natural GUEST_PENDING_DEBUG_EXCEPTIONS = 0x6822, "Debug exceptions that are pending.";
    Natural GUEST_IA32_SYSENTER_ESP = 0x6824, "IA32_SYSENTER_ESP.";
    Natural GUEST_IA32_SYSENTER_EIP = 0x6826, "IA32_SYSENTER_EIP.";
    Natural GUEST_IA32_S_CET = 0x6828, "IA32_S_CET.";
    Natural GUEST_SSP = 0x682A, "Shadow-stack pointer.";
    Natural GUEST_IA32_INTERRUPT_SSP_TABLE = 0x682C, "IA32_INTERRUPT_SSP_TABLE_ADDR.";
}

fields! {
    /// All host-state fields: encoding and name.
    ALL_HOST_STATE, ReadWrite:
    // 16-bit host-state fields.
    W16 HOST_ES_SELECTOR = 0x0C00, "Selector of ES.";
    W16 HOST_CS_SELECTOR = 0x0C02, "Selector of CS.";
    W16 HOST_SS_SELECTOR = 0x0C04, "Selector of SS.";
    W16 HOST_DS_SELECTOR = 0x0C06, "Selector of DS.";
    W16 HOST_FS_SELECTOR = 0x0C08, "Selector of FS.";
    W16 HOST_GS_SELECTOR = 0x0C0A, "Selector of GS.";
    W16 HOST_TR_SELECTOR = 0x0C0C, "Selector of TR.";
    // 64-bit host-state fields.
    W64 HOST_IA32_PAT = 0x2C00, "IA32_PAT.";
    W64 HOST_IA32_EFER = 0x2C02, "IA32_EFER.";
    W64 HOST_IA32_PERF_GLOBAL_CTRL = 0x2C04, "IA32_PERF_GLOBAL_CTRL.";
    W64 HOST_IA32_PKRS = 0x2C06, "IA32_PKRS.";
    // 32-bit host-state field.
    W32 HOST_IA32_SYSENTER_CS = 0x4C00, "IA32_SYSENTER_CS.";
    // Natural-width host-state fields.
    Natural HOST_CR0 = 0x6C00, "CR0.";
    Natural HOST_CR3 = 0x6C02, "CR3.";
    Natural HOST_CR4 = 0x6C04, "CR4.";
    Natural HOST_FS_BASE = 0x6C06, "Base of FS.";
    Natural HOST_GS_BASE = 0x6C08, "Base of GS.";
    Natural HOST_TR_BASE = 0x6C0A, "Base of TR.";
    Natural HOST_GDTR_BASE = 0x6C0C, "Base of GDTR.";
    Natural HOST_IDTR_BASE = 0x6C0E, "Base of IDTR.";
    Natural HOST_IA32_SYSENTER_ESP = 0x6C10, "IA32_SYSENTER_ESP.";
    Natural HOST_IA32_SYSENTER_EIP = 0x6C12, "IA32_SYSENTER_EIP.";
    Natural HOST_RSP = 0x6C14, "RSP on an exit.";
    Natural HOST_RIP = 0x6C16, "RIP on an exit.";
    Natural HOST_IA32_S_CET = 0x6C18, "IA32_S_CET.";
    Natural HOST_SSP = 0x6C1A, "Shadow-stack pointer.";
    Natural HOST_IA32_INTERRUPT_SSP_TABLE = 0x6C1C, "IA32_INTERRUPT_SSP_TABLE_ADDR.";
}
