use expect_test::expect_file;

use super::*;
use crate::catalog::{Catalog, Credentials, Generation, Listener, Login};
use crate::json::FormatError;
use crate::plan::InputLocation;
use crate::{CheckContext, Document, Sha256, check};

const HOST: HostLimits = HostLimits { cpus: 4, memory_mib: 6000 };

fn catalog() -> Catalog {
    Catalog::parse(
        "format: 1\nimages:\n  - name: base\n    platform: [{publisher: p, offer: o, sku: s}]\n    os: linux\n    generations: [V2, V1]\n    arch: x86_64\n    login: cloud-init\n    format: qcow2\n    source: imported\n",
        "test",
    )
    .unwrap()
}

fn image(generation: Generation, virtual_size: u64) -> StoredImage {
    let catalog = catalog();
    let entry = &catalog.entries()[0];
    StoredImage {
        name: entry.name.clone(),
        version: "1.2.3".to_owned(),
        platform: entry.platform.clone(),
        os: entry.os,
        generation,
        generations: entry.generations.clone(),
        arch: entry.arch,
        login: entry.login.clone(),
        format: entry.format,
        sha256: Sha256::from_bytes([0xab; 32]),
        virtual_size,
        path: "/shelf/base.qcow2".into(),
        stored_at: "2025-01-01T00:00:00Z".to_owned(),
    }
}

fn template(version: &str, properties: &str) -> CheckedTemplate {
    template_on("P", version, properties)
}

/// A base image that the catalog does not know may be of any system.
fn template_on(publisher: &str, version: &str, properties: &str) -> CheckedTemplate {
    let text = format!(
        r#"{{"apiVersion": "{version}", "name": "t", "location": "here", "tags": {{"a": "template", "b": "template"}},
            "properties": {{
              "source": {{"type": "PlatformImage", "publisher": "{publisher}", "offer": "o", "sku": "s", "version": "latest"}},
              "distribute": [{{"type": "VHD", "runOutputName": "d", "artifactTags": {{"b": "target"}}}}]
              {properties}}}}}"#
    );
    let document = Document::parse(text.as_bytes(), "x").unwrap();
    let checked = check(&document, &CheckContext { catalog: &catalog(), azure: false });
    checked.template.unwrap_or_else(|| panic!("{:?}", checked.problems))
}

fn codes(problems: &Problems) -> Vec<Code> {
    problems.iter().map(|problem| problem.code).collect()
}

/// The format is a promise.
#[test]
fn the_plan_format_is_golden() {
    let template = template(
        "2022-07-01",
        r#", "vmProfile": {"vmSize": "Standard_D16s_v3", "osDiskSizeGB": 30}, "buildTimeoutInMinutes": 60,
            "customize": [
              {"type": "Shell", "name": "one", "inline": ["a", "b"]},
              {"type": "Shell", "scriptUri": "https://h/a.sh?sig=SECRET", "sha256Checksum": "2c6ff6902a4a52deee69e8db26d0036a53388651008aaf31795bb20dabd21fd8"},
              {"type": "PowerShell", "inline": ["x"], "runElevated": true, "runAsSystem": true, "validExitCodes": [0, 3]},
              {"type": "File", "sourceUri": "file:///srv/f", "destination": "/tmp/f"}]"#,
    );
    let plan = template.plan(&image(Generation::V1, 4 * GIB), HOST).unwrap();
    let text = plan.to_json();
    expect_file!["../../../../tests/fixtures/golden/plan.json"].assert_eq(&text);
    assert_eq!(BuildPlan::from_json(&text).unwrap(), plan);
    // The same inputs, the same plan.
    assert_eq!(template.plan(&image(Generation::V1, 4 * GIB), HOST).unwrap().to_json(), text);

    let newer = text.replacen("\"format\": 1", "\"format\": 7", 1);
    assert!(matches!(BuildPlan::from_json(&newer), Err(FormatError::Newer { found: 7, .. })));
    assert!(matches!(BuildPlan::from_json("{}"), Err(FormatError::Missing { .. })));
    let foreign = text.replacen("\"location\"", "\"surprise\"", 1);
    assert!(matches!(BuildPlan::from_json(&foreign), Err(FormatError::Malformed { .. })));
    assert!(BuildPlan::from_json(&text[..text.len() / 2]).is_err());

    let shown = plan.redacted();
    assert!(text.contains("SECRET") && !shown.to_json().contains("SECRET"));
    let CustomizerAction::Shell { script: crate::plan::Script::Fetched(input) } =
        &shown.customizers[1].action
    else {
        panic!()
    };
    assert_eq!(input.location, InputLocation::Url("https://h/a.sh?<redacted>".to_owned()));
}

#[test]
fn the_machine_is_the_sizes_capped_by_the_host() {
    let plan = |size: &str, generation, host| {
        let profile =
            if size.is_empty() { String::new() } else { format!(r#", "vmProfile": {{"vmSize": "{size}"}}"#) };
        template("2022-07-01", &profile).plan(&image(generation, 4 * GIB), host).unwrap()
    };
    let large = HostLimits { cpus: 64, memory_mib: 1 << 20 };
    for (size, generation, host, vcpus, memory, warnings) in [
        ("", Generation::V1, large, 1, 3584, 0),
        ("", Generation::V2, large, 2, 8192, 0),
        ("", Generation::V2, HOST, 2, 6000, 1),
        ("standard_d16S_V3", Generation::V2, HOST, 4, 6000, 1),
        ("Standard_A0", Generation::V1, HOST, 1, 768, 0),
        ("Standard_B1ls", Generation::V1, HostLimits { cpus: 0, memory_mib: 512 }, 1, 512, 0),
        ("Standard_NC6", Generation::V1, large, 6, 56 * 1024, 1),
    ] {
        let plan = plan(size, generation, host);
        let machine = &plan.machine;
        assert_eq!((machine.vcpus, machine.memory_mib), (vcpus, memory), "{size}");
        assert_eq!(plan.warnings.len(), warnings, "{size}: {:?}", plan.warnings);
        assert_eq!(machine.disk_bytes, 4 * GIB);
    }
    let tiny = HostLimits { cpus: 1, memory_mib: 400 };
    let refused = template("2022-07-01", "").plan(&image(Generation::V1, GIB), tiny).unwrap_err();
    assert_eq!(codes(&refused), [Code::Capped]);
}

#[test]
fn a_disk_grows_or_keeps_its_size() {
    let plan = |gigabytes: u32, size: u64| {
        template("2020-02-14", &format!(r#", "vmProfile": {{"osDiskSizeGB": {gigabytes}}}"#))
            .plan(&image(Generation::V1, size), HOST)
    };
    let odd = 2 * GIB + 200 * 1024 * 1024;
    assert_eq!(plan(0, odd).unwrap().machine.disk_bytes, odd);
    assert_eq!(plan(4, 4 * GIB).unwrap().machine.disk_bytes, 4 * GIB);
    assert_eq!(plan(5, 4 * GIB).unwrap().machine.disk_bytes, 5 * GIB);
    assert!(plan(4, 4 * GIB + 1).is_err(), "by one byte");
    let refused = plan(2, odd).unwrap_err();
    assert_eq!(refused[0].code, Code::ShrinkingDisk);
    assert_eq!(refused[0].pointer, "/properties/vmProfile/osDiskSizeGB");
    assert_eq!(
        refused[0].message,
        "osDiskSizeGB is 2 GB, and the base image base 1.2.3 has a disk of 2.2 GB: a disk can only grow"
    );
    assert_eq!(refused[0].help.as_deref(), Some("give 3 or more, or 0 to keep the size"));
}

#[test]
fn tags_are_overlaid_and_the_deprovision_line_is_the_versions() {
    for (version, line) in [
        ("2019-05-01-preview", DEPROVISION_2020),
        ("2020-02-14", DEPROVISION_2020),
        ("2021-10-01", DEPROVISION),
        ("2025-10-01", DEPROVISION),
    ] {
        let plan = template(version, "").plan(&image(Generation::V1, GIB), HOST).unwrap();
        assert_eq!(plan.deprovision.as_deref(), Some(line));
        let Distributor::Vhd { tags, .. } = &plan.distributors[0];
        assert_eq!(tags, &BTreeMap::from([("a".into(), "template".into()), ("b".into(), "target".into())]));
        assert_eq!(plan.source_requested, "P:o:s:latest");
    }
}

#[test]
fn what_is_not_built_yet_is_refused_at_its_place() {
    for (properties, pointer) in [
        (
            r#", "validate": {"inVMValidations": [{"type": "Shell", "inline": ["x"]}]}"#,
            "/properties/validate",
        ),
        (r#", "validate": {"sourceValidationOnly": true}"#, "/properties/validate"),
        (r#", "optimize": {"workload": {"state": "Enabled"}}"#, "/properties/optimize/workload/state"),
        (r#", "additionalDataDisks": [{"sizeGB": 4}]"#, "/properties/additionalDataDisks/0/sizeGB"),
    ] {
        let refused = template("2025-10-01", properties).plan(&image(Generation::V2, GIB), HOST).unwrap_err();
        assert_eq!(codes(&refused), [Code::NotBuiltYet], "{properties}");
        assert_eq!(refused[0].pointer, pointer);
    }
    for harmless in [
        r#", "validate": {}"#,
        r#", "validate": {"continueDistributeOnFailure": true, "inVMValidations": []}"#,
        r#", "optimize": {"workload": {"state": "Disabled"}}"#,
        r#", "optimize": {"vmBoot": {"state": "Enabled"}}"#,
        r#", "errorHandling": {"onCustomizerError": "cleanup", "onValidationError": "abort"}"#,
        r#", "errorHandling": {"onCustomizerError": "abort"}"#,
        r#", "additionalDataDisks": []"#,
        r#", "autoRun": {"state": "Enabled"}"#,
    ] {
        assert!(
            template("2025-10-01", harmless).plan(&image(Generation::V2, GIB), HOST).is_ok(),
            "{harmless}"
        );
    }
}

#[test]
fn the_image_itself_is_asked_too() {
    let mut windows = image(Generation::V1, GIB);
    windows.os = Os::Windows;
    let refused = template("2022-07-01", r#", "customize": [{"type": "Shell", "inline": ["x"]}]"#)
        .plan(&windows, HOST)
        .unwrap_err();
    assert_eq!(codes(&refused), [Code::CustomizerNotSupported]);
    let restart = r#", "customize": [{"type": "WindowsRestart", "restartTimeout": "90s"},
        {"type": "WindowsUpdate", "filters": ["exclude:$_.Title -like '*Preview*'"], "updateLimit": 20}]"#;
    let refused =
        template_on("Own", "2022-07-01", restart).plan(&image(Generation::V1, GIB), HOST).unwrap_err();
    assert_eq!(codes(&refused), [Code::CustomizerNotSupported, Code::CustomizerNotSupported]);
    let plan = template_on("Own", "2022-07-01", restart).plan(&windows, HOST).unwrap();
    assert_eq!(plan.deprovision, None, "Sysprep does it");
    assert!(plan.warnings.iter().any(|warning| warning.contains("none is verified on a Windows")));
    assert!(!plan.warnings.iter().any(|warning| warning.contains("keeps the account")));
    let mut installed = windows.clone();
    let own = Credentials::new("builder".into(), "/p".into(), Listener::Http, None).unwrap();
    installed.login = Login::Credentials(own);
    let of_installed = template_on("Own", "2022-07-01", restart).plan(&installed, HOST).unwrap();
    assert!(
        of_installed.warnings.iter().any(|warning| warning.contains("keeps the account \"builder\"")),
        "{:?}",
        of_installed.warnings
    );
    let json = of_installed.to_json();
    assert_eq!(BuildPlan::from_json(&json).unwrap(), of_installed, "{json}");
    let [restart, update] = &plan.customizers[..] else { panic!("{:?}", plan.customizers) };
    let CustomizerAction::WindowsRestart { timeout_ms, check_command, .. } = &restart.action else {
        panic!()
    };
    assert_eq!((*timeout_ms, check_command.as_str()), (90_000, ""));
    let CustomizerAction::WindowsUpdate { filters, limit, .. } = &update.action else { panic!() };
    assert_eq!((filters.len(), filters[0].include, *limit), (1, false, 20));
}
