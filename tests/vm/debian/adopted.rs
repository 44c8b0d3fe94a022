//! An image of somebody's own, without Azure's agent: made here by a first build, brought
//! into the library as the VHD it is, and built on.

use kiln_tests::disk::Disk;
use kiln_tests::kiln::Kiln;
use kiln_tests::template::{Template, debian};

#[test]
fn an_imported_image_without_waagent_is_built_and_cleaned() {
    let kiln = Kiln::with_own_shelf();
    // The script that ends this build is the template's own: the default one is gone with the agent.
    let first = kiln
        .build(&debian().shell(
            "no agent",
            [
                "sudo dpkg --purge waagent",
                "! command -v waagent",
                "echo 'echo nothing to do' > /tmp/DeprovisioningScript.sh",
            ],
        ))
        .succeeded();
    let vhd = first.vhd();
    let args = ["images", "import", vhd.to_str().unwrap(), "--name", "no-agent", "--version", "1.0.0"];
    let imported =
        kiln.run(args.into_iter().chain(["--platform", "Contoso:linux:no-agent", "--generation", "1"]));
    assert!(imported.status.success(), "{}", imported.stderr);
    std::fs::remove_file(&vhd).unwrap();

    let template =
        Template::new("contoso", "LINUX", "no-agent").shell("mark", ["echo built | sudo tee /srv/second"]);
    let second = kiln.build(&template).succeeded();
    assert!(
        second.notices("warning").iter().any(|text| text.contains("no waagent")),
        "{:?}",
        second.notices("warning")
    );
    assert!(second.log().contains("WARNING: the guest has no waagent"));
    let disk = Disk::open(&second.vhd());
    assert_eq!(disk.text("/srv/second"), "built\n");
    // Kiln's own clean-up: cloud-init, machine id, host keys, history, account.
    assert!(!disk.exists("/var/lib/cloud"));
    assert_eq!(disk.text("/etc/machine-id"), "");
    assert!(!disk.names("/etc/ssh").iter().any(|name| name.starts_with("ssh_host_")));
    assert!(!disk.exists("/root/.bash_history"));
    assert!(!disk.text("/etc/passwd").contains("packer"));
    assert!(!disk.names("/etc/sudoers.d").iter().any(|name| name.contains("cloud-init")));
}
