//! What GET says, by version, held by golden texts.

use super::*;
use crate::store::{InputCopy, ProvisioningState, TemplateId};
use expect_test::{Expect, expect};
use kiln_build::run_dir::RunId;
use kiln_model::Sha256;
use kiln_model::event::RunOutput;
use kiln_model::run::RunState;

fn record() -> TemplateRecord {
    let secret = "https://user:CANARY@h/a.ps1?sig=CANARY";
    TemplateRecord {
        id: TemplateId {
            subscription: "S".to_owned(),
            resource_group: "Rg".to_owned(),
            name: "T".to_owned(),
        },
        location: "westus2".to_owned(),
        tags: Map::from_iter([("a".to_owned(), json!("b"))]),
        identity: Some(
            json!({"type": "UserAssigned", "userAssignedIdentities": {"/subscriptions/S/Id": {}}}),
        ),
        properties: json!({
            "source": {"type": "PlatformImage", "publisher": "p", "offer": "o", "sku": "s", "version": "latest"},
            "customize": [
                {"type": "PowerShell", "name": "ps", "scriptUri": secret},
                {"type": "File", "sourceUri": "https://h/f?CANARY", "destination": "/tmp/f"}
            ],
            "validate": {"inVMValidations": [{"type": "PowerShell", "inline": ["x"], "runElevated": true}]},
            "distribute": [{"type": "VHD", "runOutputName": "o", "uri": "https://h/v.vhd?CANARY"}],
            "optimize": {"vmBoot": {"state": "Disabled"}, "workload": {"state": "Disabled", "scriptUri": "https://h/w?CANARY"}},
            "errorHandling": {"onCustomizerError": "cleanup"},
            "autoRun": {"state": "Disabled"},
            "vmProfile": {"vmSize": "Standard_D2s_v3", "userAssignedIdentities": []}
        }),
        api_version: "2025-10-01".to_owned(),
        provisioning: ProvisioningState::Succeeded,
        provisioning_error: None,
        copies: vec![InputCopy { address: secret.to_owned(), sha256: Sha256::from_bytes([1; 32]), size: 1 }],
        pending: None,
        exact_version: Some("12.1".to_owned()),
        last_run: Some(LastRun {
            run: RunId::new("t"),
            state: RunState::Running,
            phase: Some(Phase::Optimizing),
            message: String::new(),
            started_at: "2026-01-01T00:00:00Z".to_owned(),
            ended_at: None,
        }),
        created_at: "2026-01-01T00:00:00.5Z".to_owned(),
        created_by: "me".to_owned(),
        modified_at: "2026-01-02T00:00:00.123456789Z".to_owned(),
        modified_by: "you".to_owned(),
        generation: 3,
    }
}

fn check(version: ApiVersion, expected: &Expect) {
    let shown = serde_json::to_string_pretty(&view(&record(), version)).unwrap();
    assert!(!shown.contains("CANARY"), "{shown}");
    expected.assert_eq(&shown);
}

#[test]
fn templates_in_2020() {
    check(
        ApiVersion::V2020_02_14,
        &expect![[r#"
        {
          "id": "/subscriptions/S/resourceGroups/Rg/providers/Microsoft.VirtualMachineImages/imageTemplates/T",
          "name": "T",
          "type": "Microsoft.VirtualMachineImages/imageTemplates",
          "location": "westus2",
          "tags": {
            "a": "b"
          },
          "identity": {
            "type": "UserAssigned",
            "userAssignedIdentities": {
              "/subscriptions/S/Id": {
                "principalId": "4a775595-e897-551e-afa9-9793a322395c",
                "clientId": "ff5438dc-c7fa-5fea-be01-a4a3c0075075"
              }
            }
          },
          "properties": {
            "source": {
              "type": "PlatformImage",
              "publisher": "p",
              "offer": "o",
              "sku": "s",
              "version": "latest"
            },
            "customize": [
              {
                "type": "PowerShell",
                "name": "ps",
                "scriptUri": "https://h/a.ps1?<redacted>",
                "runElevated": false
              },
              {
                "type": "File",
                "sourceUri": "https://h/f?<redacted>",
                "destination": "/tmp/f"
              }
            ],
            "distribute": [
              {
                "type": "VHD",
                "runOutputName": "o"
              }
            ],
            "vmProfile": {
              "vmSize": "Standard_D2s_v3"
            },
            "provisioningState": "Succeeded",
            "lastRunStatus": {
              "startTime": "2026-01-01T00:00:00.000000000Z",
              "runState": "Running",
              "runSubState": "Customizing",
              "message": ""
            }
          }
        }"#]],
    );
}

#[test]
fn templates_in_2022() {
    check(
        ApiVersion::V2022_02_14,
        &expect![[r#"
        {
          "id": "/subscriptions/S/resourceGroups/Rg/providers/Microsoft.VirtualMachineImages/imageTemplates/T",
          "name": "T",
          "type": "Microsoft.VirtualMachineImages/imageTemplates",
          "location": "westus2",
          "tags": {
            "a": "b"
          },
          "identity": {
            "type": "UserAssigned",
            "userAssignedIdentities": {
              "/subscriptions/S/Id": {
                "principalId": "4a775595-e897-551e-afa9-9793a322395c",
                "clientId": "ff5438dc-c7fa-5fea-be01-a4a3c0075075"
              }
            }
          },
          "systemData": {
            "createdBy": "me",
            "createdByType": "Application",
            "createdAt": "2026-01-01T00:00:00.500000000Z",
            "lastModifiedBy": "you",
            "lastModifiedByType": "Application",
            "lastModifiedAt": "2026-01-02T00:00:00.123456789Z"
          },
          "properties": {
            "source": {
              "type": "PlatformImage",
              "publisher": "p",
              "offer": "o",
              "sku": "s",
              "version": "latest",
              "exactVersion": "12.1"
            },
            "customize": [
              {
                "type": "PowerShell",
                "name": "ps",
                "scriptUri": "https://h/a.ps1?<redacted>",
                "runElevated": false,
                "runAsSystem": false
              },
              {
                "type": "File",
                "sourceUri": "https://h/f?<redacted>",
                "destination": "/tmp/f"
              }
            ],
            "validate": {
              "inVMValidations": [
                {
                  "type": "PowerShell",
                  "inline": [
                    "x"
                  ],
                  "runElevated": true,
                  "runAsSystem": false
                }
              ]
            },
            "distribute": [
              {
                "type": "VHD",
                "runOutputName": "o"
              }
            ],
            "vmProfile": {
              "vmSize": "Standard_D2s_v3",
              "userAssignedIdentities": []
            },
            "provisioningState": "Succeeded",
            "lastRunStatus": {
              "startTime": "2026-01-01T00:00:00.000000000Z",
              "runState": "Running",
              "runSubState": "Customizing",
              "message": ""
            }
          }
        }"#]],
    );
}

#[test]
fn templates_in_2025() {
    check(
        ApiVersion::V2025_10_01,
        &expect![[r#"
        {
          "id": "/subscriptions/S/resourceGroups/Rg/providers/Microsoft.VirtualMachineImages/imageTemplates/T",
          "name": "T",
          "type": "Microsoft.VirtualMachineImages/imageTemplates",
          "location": "westus2",
          "tags": {
            "a": "b"
          },
          "identity": {
            "type": "UserAssigned",
            "userAssignedIdentities": {
              "/subscriptions/S/Id": {
                "principalId": "4a775595-e897-551e-afa9-9793a322395c",
                "clientId": "ff5438dc-c7fa-5fea-be01-a4a3c0075075"
              }
            }
          },
          "systemData": {
            "createdBy": "me",
            "createdByType": "Application",
            "createdAt": "2026-01-01T00:00:00.500000000Z",
            "lastModifiedBy": "you",
            "lastModifiedByType": "Application",
            "lastModifiedAt": "2026-01-02T00:00:00.123456789Z"
          },
          "properties": {
            "source": {
              "type": "PlatformImage",
              "publisher": "p",
              "offer": "o",
              "sku": "s",
              "version": "latest",
              "exactVersion": "12.1"
            },
            "customize": [
              {
                "type": "PowerShell",
                "name": "ps",
                "scriptUri": "https://h/a.ps1?<redacted>",
                "runElevated": false,
                "runAsSystem": false
              },
              {
                "type": "File",
                "sourceUri": "https://h/f?<redacted>",
                "destination": "/tmp/f"
              }
            ],
            "validate": {
              "inVMValidations": [
                {
                  "type": "PowerShell",
                  "inline": [
                    "x"
                  ],
                  "runElevated": true,
                  "runAsSystem": false
                }
              ]
            },
            "distribute": [
              {
                "type": "VHD",
                "runOutputName": "o",
                "uri": "https://h/v.vhd?<redacted>"
              }
            ],
            "optimize": {
              "vmBoot": {
                "state": "Disabled"
              },
              "workload": {
                "state": "Disabled",
                "scriptUri": "https://h/w?<redacted>"
              }
            },
            "errorHandling": {
              "onCustomizerError": "cleanup"
            },
            "autoRun": {
              "state": "Disabled"
            },
            "vmProfile": {
              "vmSize": "Standard_D2s_v3",
              "userAssignedIdentities": []
            },
            "provisioningState": "Succeeded",
            "lastRunStatus": {
              "startTime": "2026-01-01T00:00:00.000000000Z",
              "runState": "Running",
              "runSubState": "Optimizing",
              "message": ""
            }
          }
        }"#]],
    );
}

#[test]
fn no_version_shows_a_secret() {
    for version in ApiVersion::ALL {
        let shown = view(&record(), version).to_string();
        assert!(!shown.contains("CANARY"), "{version}: {shown}");
    }
}

#[test]
fn a_failed_template_says_why() {
    let mut record = record();
    record.provisioning = ProvisioningState::Failed;
    record.provisioning_error =
        Some(ProvisioningError { code: "NoCustomizerScript".to_owned(), message: "gone".to_owned() });
    let shown = view(&record, ApiVersion::V2020_02_14);
    assert_eq!(
        shown["properties"]["provisioningError"],
        json!({"provisioningErrorCode": "NoCustomizerScript", "message": "gone"})
    );
    assert_eq!(shown["properties"]["provisioningState"], "Failed");
}

#[test]
fn last_runs_by_state_and_version() {
    let run = |state, phase, ended: Option<&str>, version| {
        let last = LastRun {
            run: RunId::new("t"),
            state,
            phase,
            message: "m".to_owned(),
            started_at: "2026-01-01T00:00:00Z".to_owned(),
            ended_at: ended.map(str::to_owned),
        };
        last_run(&last, version)
    };
    use ApiVersion as V;
    for (phase, version, shown) in [
        (Phase::Optimizing, V::V2022_02_14, "Customizing"),
        (Phase::Optimizing, V::V2022_07_01, "Optimizing"),
        (Phase::Validating, V::V2021_10_01, "Customizing"),
        (Phase::Validating, V::V2022_02_14, "Validating"),
        (Phase::Queued, V::V2018_02_01Preview, "Queued"),
        (Phase::Distributing, V::V2018_02_01Preview, "Distributing"),
    ] {
        assert_eq!(
            run(RunState::Running, Some(phase), None, version)["runSubState"],
            shown,
            "{phase} {version}"
        );
    }
    for (state, shown) in [
        (RunState::Running, "Running"),
        (RunState::Canceling, "Canceling"),
        (RunState::Succeeded, "Succeeded"),
        (RunState::PartiallySucceeded, "PartiallySucceeded"),
        (RunState::Failed, "Failed"),
        (RunState::Canceled, "Canceled"),
    ] {
        let status = run(state, None, Some("2026-01-01T01:00:00.25Z"), V::V2020_02_14);
        assert_eq!(
            status,
            json!({
                "startTime": "2026-01-01T00:00:00.000000000Z", "endTime": "2026-01-01T01:00:00.250000000Z",
                "runState": shown, "message": "m"
            })
        );
    }
}

#[test]
fn outputs() {
    let output = OutputRecord {
        template: record().id,
        name: "o".to_owned(),
        run: RunId::new("t"),
        output: serde_json::from_value::<RunOutput>(json!({
            "format": 1, "name": "o", "type": "VHD", "runId": "r", "file": "o.vhd", "size": 513, "virtualSize": 1,
            "sha256": Sha256::from_bytes([1; 32]), "templateName": "t", "templateSha256": Sha256::from_bytes([2; 32]),
            "source": {"requested": "p:o:s:latest", "name": "n", "version": "1", "sha256": Sha256::from_bytes([3; 32])},
            "generation": "V1", "tags": {}, "createdAt": "2026-01-01T00:00:00Z", "kilnVersion": "0", "status": "s"
        }))
        .unwrap(),
        created_at: "2026-01-01T00:00:00Z".to_owned(),
    };
    expect![[r#"
        {
          "id": "/subscriptions/S/resourceGroups/Rg/providers/Microsoft.VirtualMachineImages/imageTemplates/T/runOutputs/o",
          "name": "o",
          "type": "Microsoft.VirtualMachineImages/imageTemplates/runOutputs",
          "properties": {
            "artifactUri": "https://h/kiln/artifacts/r/o.vhd",
            "provisioningState": "Succeeded"
          }
        }"#]].assert_eq(
        &serde_json::to_string_pretty(&output_view(
            &output,
            ApiVersion::V2020_02_14,
            "https://h/kiln/artifacts/r/o.vhd",
        ))
        .unwrap(),
    );
}
