//! The second generation: the same base as a UEFI machine, built and booted again.

use kiln_tests::disk::Disk;
use kiln_tests::footer;
use kiln_tests::kiln::Kiln;
use kiln_tests::reboot::{Firmware, Reboot};
use kiln_tests::template::debian_gen2;

#[test]
fn a_second_generation_image_is_built_and_boots_by_uefi() {
    let kiln = Kiln::new();
    let ended = kiln
        .build(
            &debian_gen2()
                .shell("look", ["test -d /sys/firmware/efi", "echo by-uefi | sudo tee /srv/firmware"]),
        )
        .succeeded();
    assert_eq!(ended.result["outputs"][0]["output"]["generation"], "V2");
    let vhd = ended.vhd();
    footer::assert_fit_for_azure(&vhd);
    assert_eq!(Disk::open(&vhd).text("/srv/firmware"), "by-uefi\n");

    let guest = Reboot::start(&vhd, Firmware::Uefi);
    assert_eq!(guest.ask("test -d /sys/firmware/efi && cat /srv/firmware"), "by-uefi");
}
