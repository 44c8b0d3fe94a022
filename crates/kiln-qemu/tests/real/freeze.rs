//! Keeping a machine and going on from it.

use std::path::Path;
use std::time::Duration;

use kiln_qemu::disk::Overlay;
use kiln_qemu::machine::{Drivers, Hardware, Machine, Tpm};
use kiln_qemu::tpm;
use kiln_qemu::vm::{FreezeTo, Vm, VmError};

use crate::guest::{Does, base, in_time, machine_over, qemu, up};

/// A machine that goes on from `frozen` and `memory`, with everything it makes in `dir`.
fn restored(dir: &Path, like: Machine, frozen: &Overlay, memory: &Path) -> Machine {
    let disk =
        Overlay::above(qemu().img(), frozen.path(), frozen.virtual_size(), dir.join("os.qcow2")).unwrap();
    Machine {
        disks: vec![disk],
        incoming: Some(memory.to_owned()),
        serial_log: dir.join("serial.log"),
        qemu_log: dir.join("qemu.log"),
        runtime_dir: dir.join("rt"),
        ..like
    }
}

fn to(layer: Overlay, memory: Option<&Path>) -> FreezeTo<'_> {
    FreezeTo { layers: vec![layer], memory, copies: Vec::new() }
}

#[tokio::test]
async fn a_frozen_machine_goes_on_and_so_do_those_that_are_made_of_it() {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let first = dirs[0].path();
    let base = base(first, Does::WaitForButton, 0, 1);
    let machine = machine_over(first, &base);
    let size = machine.disks[0].virtual_size();
    let mut vm = Vm::start(&qemu(), machine, &in_time()).await.unwrap();
    up(first).await;

    let (home, layer, memory) =
        (first.join("home,disk.qcow2"), first.join("layer.qcow2"), first.join("memory,1"));
    let above = Overlay::above(qemu().img(), &home, size, &layer).unwrap();
    let frozen = vm.freeze(to(above, Some(&memory)), &in_time()).await.unwrap();
    assert!(frozen.no_memory.is_none(), "{:?}", frozen.no_memory);
    assert!(frozen.pause < Duration::from_secs(20));
    // What is kept finds its place only now; the machine has it open.
    std::fs::rename(frozen.disks[0].path(), &home).unwrap();
    let kept = Overlay::reopen(qemu().img(), &home).unwrap();
    let bytes = std::fs::read(&home).unwrap();

    // A second time, on top of the first.
    let again = Overlay::above(qemu().img(), &layer, size, first.join("again.qcow2")).unwrap();
    let second = vm.freeze(to(again, None), &in_time()).await.unwrap();
    assert_eq!(second.disks[0].path(), layer);

    let mut others = Vec::new();
    for dir in &dirs[1..] {
        let like = machine_over(dir.path(), &base);
        let machine = restored(dir.path(), like, &kept, &memory);
        others.push(Vm::start(&qemu(), machine, &in_time()).await.unwrap());
    }
    for (vm, dir) in others.into_iter().zip(&dirs[1..]) {
        let stopped = vm.power_down(&in_time(), Duration::from_secs(15)).await.unwrap();
        assert_eq!(stopped.os_disk().path(), dir.path().join("os.qcow2"));
        let said = std::fs::read_to_string(dir.path().join("serial.log")).unwrap();
        assert_eq!(said, "", "it booted and did not go on");
    }
    let stopped = vm.power_down(&in_time(), Duration::from_secs(15)).await.unwrap();
    assert_eq!(stopped.os_disk().path(), first.join("again.qcow2"));
    assert_eq!(std::fs::read(&home).unwrap(), bytes, "what was frozen is written by nobody");
}

/// Everything that a Windows machine has beside disk and memory: the TPM's state is in the memory file and, for whoever
/// boots the disk, in a file of its own. Its generation ID is another one after each start.
#[tokio::test]
async fn a_machine_with_a_tpm_goes_on_and_is_told_so() {
    let Ok(program) = tpm::find("/usr/bin".as_ref()) else {
        eprintln!("skipped: swtpm is not installed");
        return;
    };
    let hardware = |dir: &Path| Hardware::Windows {
        drivers: Drivers::Inbox,
        tpm: Some(Tpm { program: program.clone(), state: dir.join("tpm"), log: dir.join("tpm.log") }),
    };
    let generation = async |vm: &Vm| {
        let asked = vm.qmp().execute("query-vm-generation-id", serde_json::json!({})).await.unwrap();
        asked["guid"].as_str().unwrap().to_owned()
    };
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let (first, second) = (dirs[0].path(), dirs[1].path());
    let base = base(first, Does::Nothing, 0, 1);
    let machine = Machine { hardware: hardware(first), ..machine_over(first, &base) };
    let size = machine.disks[0].virtual_size();
    let mut vm = Vm::start(&qemu(), machine, &in_time()).await.unwrap();
    up(first).await;

    let (disk, memory, state) = (first.join("os,disk.qcow2"), first.join("memory"), first.join("tpm-state"));
    let layer = Overlay::above(qemu().img(), &disk, size, first.join("layer.qcow2")).unwrap();
    let copies = vec![(vm.tpm_state().unwrap(), state.clone())];
    let to = FreezeTo { layers: vec![layer], memory: Some(&memory), copies };
    let frozen = vm.freeze(to, &in_time()).await.unwrap();
    assert!(frozen.no_memory.is_none(), "{:?}", frozen.no_memory);
    assert!(std::fs::metadata(&state).unwrap().len() > 0);

    std::fs::create_dir(second.join("tpm")).unwrap();
    std::fs::copy(&state, second.join("tpm").join(tpm::STATE_FILE)).unwrap();
    let like = Machine { hardware: hardware(second), ..machine_over(second, &base) };
    let other = Vm::start(&qemu(), restored(second, like, &frozen.disks[0], &memory), &in_time()).await;
    let other = other.unwrap();
    if qemu().features().vmgenid {
        assert_ne!(generation(&vm).await, generation(&other).await);
    }
    let said = std::fs::read_to_string(second.join("serial.log")).unwrap();
    assert_eq!(said, "", "it booted and did not go on");
    // Both go on, each with its own TPM.
    vm.guard(&in_time(), async {}).await.unwrap();
    other.kill().await;
    vm.kill().await;
}

#[tokio::test]
async fn a_memory_file_that_is_torn_starts_nothing() {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let (first, second) = (dirs[0].path(), dirs[1].path());
    let base = base(first, Does::WaitForButton, 0, 1);
    let machine = machine_over(first, &base);
    let size = machine.disks[0].virtual_size();
    let mut vm = Vm::start(&qemu(), machine, &in_time()).await.unwrap();
    up(first).await;
    let (disk, memory) = (first.join("os,disk.qcow2"), first.join("memory"));
    let layer = Overlay::above(qemu().img(), &disk, size, first.join("layer.qcow2")).unwrap();
    let frozen = vm.freeze(to(layer, Some(&memory)), &in_time()).await.unwrap();
    vm.kill().await;

    let whole = std::fs::metadata(&memory).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&memory).unwrap().set_len(whole / 2).unwrap();
    let machine = restored(second, machine_over(second, &base), &frozen.disks[0], &memory);
    let error = Vm::start(&qemu(), machine, &in_time()).await.unwrap_err();
    assert!(matches!(error, VmError::Exited { .. } | VmError::Memory { .. }), "{error}");
}

/// A memory file cannot be made where something lies already; the machine goes on, on its new layer.
#[tokio::test]
async fn a_machine_whose_memory_cannot_be_kept_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let machine = machine_over(dir, &base(dir, Does::WaitForButton, 0, 1));
    let size = machine.disks[0].virtual_size();
    let mut vm = Vm::start(&qemu(), machine, &in_time()).await.unwrap();
    up(dir).await;
    let layer =
        Overlay::above(qemu().img(), &dir.join("os,disk.qcow2"), size, dir.join("layer.qcow2")).unwrap();
    let frozen = vm.freeze(to(layer, Some(Path::new("/proc/version"))), &in_time()).await.unwrap();
    assert!(matches!(frozen.no_memory, Some(VmError::Prepare { .. })), "{:?}", frozen.no_memory);
    vm.power_down(&in_time(), Duration::from_secs(15)).await.unwrap();
}
