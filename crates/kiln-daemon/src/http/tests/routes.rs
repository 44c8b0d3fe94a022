//! What paths name: a table.

use axum::http::Method;
use expect_test::expect;

use crate::http::route::{Route, RouteError};

const S: &str = "00000000-0000-0000-0000-000000000001";

/// Each path, and what it names; `B` stands for the provider's base below a resource group.
fn table(paths: &[&str]) -> String {
    let lines = paths.iter().map(|path| {
        let full = match path.strip_prefix("B/") {
            Some(rest) => {
                format!("/subscriptions/S/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/{rest}")
            }
            None => (*path).to_owned(),
        };
        let full = full.replace("/S/", &format!("/{S}/"));
        let text = match Route::parse(&full) {
            Ok(route) => format!("{route:?}"),
            Err(error) => format!("! {error:?}"),
        };
        let text = text
            .replace(S, "S")
            .replace("TemplateId { subscription: \"S\", resource_group: \"rg\", name: \"t\" }", "t");
        format!("{path}\n    {text}\n")
    });
    lines.collect()
}

#[test]
fn the_contract() {
    expect![[r#"
        /providers/Microsoft.VirtualMachineImages/operations
            Images(Operations)
        /subscriptions/S/providers/Microsoft.VirtualMachineImages/imageTemplates
            Images(SubscriptionTemplates { subscription: "S" })
        B/imageTemplates
            Images(GroupTemplates { subscription: "S", resource_group: "rg" })
        B/imageTemplates/t
            Images(Template(t))
        B/imageTemplates/t/run
            Images(Run(t))
        B/imageTemplates/t/cancel
            Images(Cancel(t))
        B/imageTemplates/t/runOutputs
            Images(RunOutputs(t))
        B/imageTemplates/t/runOutputs/vhd.1
            Images(RunOutput(t, "vhd.1"))
        B/imageTemplates/t/triggers
            Images(Triggers(t))
        B/imageTemplates/t/triggers/Tr
            Images(Trigger(t, "Tr"))
        /subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operations/1-2
            Images(Operation { subscription: "S", location: "local", id: "1-2" })
        /subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operationResults/1-2
            Images(OperationResult { subscription: "S", location: "local", id: "1-2" })
    "#]]
    .assert_eq(&table(&[
        "/providers/Microsoft.VirtualMachineImages/operations",
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages/imageTemplates",
        "B/imageTemplates",
        "B/imageTemplates/t",
        "B/imageTemplates/t/run",
        "B/imageTemplates/t/cancel",
        "B/imageTemplates/t/runOutputs",
        "B/imageTemplates/t/runOutputs/vhd.1",
        "B/imageTemplates/t/triggers",
        "B/imageTemplates/t/triggers/Tr",
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operations/1-2",
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local/operationResults/1-2",
    ]));
}

#[test]
fn as_clients_spell_them() {
    let run = Route::parse(&format!(
        "/subscriptions/{S}/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/t/run"
    ));
    for path in [
        // az resource invoke-action
        "/subscriptions/S/resourcegroups/rg/providers/Microsoft.VirtualMachineImages//imageTemplates/t/Run",
        // the GitHub action
        "/subscriptions/S/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imagetemplates/t/run",
        "//SUBSCRIPTIONS/S/resourceGROUPS/rg/providers/microsoft.virtualmachineimages/IMAGETEMPLATES/t/RUN/",
        "/subscriptions/S/resourceGroups/%72g/providers/Microsoft.VirtualMachineImages/imageTemplates/t/%72un",
    ] {
        assert_eq!(Route::parse(&path.replace("/S/", &format!("/{S}/"))), run, "{path}");
    }
    // Ids compare ignoring case, and keep theirs.
    let upper = Route::parse(&format!(
        "/subscriptions/{S}/resourceGroups/RG/providers/Microsoft.VirtualMachineImages/imageTemplates/T/run"
    ));
    assert_eq!(upper, run);
    assert!(format!("{upper:?}").contains("\"RG\""), "{upper:?}");
}

#[test]
fn around_the_contract() {
    expect![[r#"
        /metadata/endpoints
            Environment(Endpoints)
        /aliases.json
            Environment(Aliases)
        /tenants
            Environment(Tenants)
        /subscriptions
            Environment(Subscriptions)
        /subscriptions/S/
            Environment(Subscription { subscription: "S" })
        /subscriptions/S/locations
            Environment(Locations { subscription: "S" })
        /subscriptions/S/resources
            Environment(Resources { subscription: "S" })
        /subscriptions/S/resourcegroups
            Environment(ResourceGroups { subscription: "S" })
        /subscriptions/S/resourcegroups/rg
            Environment(ResourceGroup { subscription: "S", name: "rg" })
        /subscriptions/S/resourcegroups/rg/resources
            Environment(GroupResources { subscription: "S", resource_group: "rg" })
        /subscriptions/S/providers
            Environment(Providers { subscription: "S" })
        /subscriptions/S/providers/Microsoft.VirtualMachineImages
            Environment(Provider { subscription: "S", namespace: "Microsoft.VirtualMachineImages" })
        /subscriptions/S/providers/Microsoft.Storage
            Environment(Provider { subscription: "S", namespace: "Microsoft.Storage" })
        /subscriptions/S/providers/Microsoft.VirtualMachineImages/register
            Environment(Register { subscription: "S", namespace: "Microsoft.VirtualMachineImages" })
        /subscriptions/S/providers/Microsoft.VirtualMachineImages/unregister
            Environment(Unregister { subscription: "S", namespace: "Microsoft.VirtualMachineImages" })
        /providers/Microsoft.Storage
            Environment(TenantProvider { namespace: "Microsoft.Storage" })
        /msi/token
            SignIn(ManagedIdentity)
        /metadata/identity/oauth2/token
            SignIn(ManagedIdentity)
        /common/.well-known/openid-configuration
            SignIn(Discovery { tenant: "common", v2: false })
        /common/v2.0/.well-known/openid-configuration
            SignIn(Discovery { tenant: "common", v2: true })
        /common/oauth2/token
            SignIn(Token { tenant: "common", v2: false })
        /common/oauth2/v2.0/token
            SignIn(Token { tenant: "common", v2: true })
        /common/discovery/v2.0/keys
            SignIn(Keys { tenant: "common" })
    "#]]
    .assert_eq(&table(&[
        "/metadata/endpoints",
        "/aliases.json",
        "/tenants",
        "/subscriptions",
        "/subscriptions/S/",
        "/subscriptions/S/locations",
        "/subscriptions/S/resources",
        "/subscriptions/S/resourcegroups",
        "/subscriptions/S/resourcegroups/rg",
        "/subscriptions/S/resourcegroups/rg/resources",
        "/subscriptions/S/providers",
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages",
        "/subscriptions/S/providers/Microsoft.Storage",
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages/register",
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages/unregister",
        "/providers/Microsoft.Storage",
        "/msi/token",
        "/metadata/identity/oauth2/token",
        "/common/.well-known/openid-configuration",
        "/common/v2.0/.well-known/openid-configuration",
        "/common/oauth2/token",
        "/common/oauth2/v2.0/token",
        "/common/discovery/v2.0/keys",
    ]));
}

#[test]
fn beside_the_contract() {
    let digest = "ab".repeat(32);
    expect![[r#"
        B/imageTemplates/t/runs
            Own(Runs(t))
        B/imageTemplates/t/runs/latest
            Own(Run(t, Latest))
        B/imageTemplates/t/runs/Latest/log
            Own(Log(t, Latest))
        B/imageTemplates/t/runs/20261123T172233Z-t-3f9a1c/events
            Own(Events(t, Id(RunId("20261123T172233Z-t-3f9a1c"))))
        B/imageTemplates/t/runs/latest/customization.log
            Own(CustomizationLog(t, Latest))
        B/imageTemplates/t/runs/latest/validation.log
            Own(ValidationLog(t, Latest))
        B/imageTemplates/t/runs/latest/retry
            Own(Retry(t, Latest))
        B/imageTemplates/t/runs/latest/secrets
            ! Own
        B/imageTemplates/t/runs/x%20y
            ! Own
        /kiln/artifacts/20261123T172233Z-t-3f9a1c/Disk.vhd
            Own(Artifact { run: RunId("20261123T172233Z-t-3f9a1c"), file: "Disk.vhd" })
        /kiln/artifacts/20261123T172233Z-t-3f9a1c/../plan.json
            ! Uri(Dots)
        /kiln/artifacts/20261123T172233Z-t-3f9a1c/%2e%2e%2fplan.json
            ! Uri(Character)
        /kiln/inputs/abababababababababababababababababababababababababababababababab
            Own(Input(Sha256(abababababababababababababababababababababababababababababababab)))
        /kiln/inputs/abc
            ! Own
        /kiln/status
            Own(Status)
        /kiln/gc
            Own(Gc)
        /kiln/activity
            Own(Activity)
        /kiln/openapi.json
            Own(OpenApi)
        /kiln/nothing
            ! Own
    "#]]
    .assert_eq(&table(&[
        "B/imageTemplates/t/runs",
        "B/imageTemplates/t/runs/latest",
        "B/imageTemplates/t/runs/Latest/log",
        "B/imageTemplates/t/runs/20261123T172233Z-t-3f9a1c/events",
        "B/imageTemplates/t/runs/latest/customization.log",
        "B/imageTemplates/t/runs/latest/validation.log",
        "B/imageTemplates/t/runs/latest/retry",
        "B/imageTemplates/t/runs/latest/secrets",
        "B/imageTemplates/t/runs/x%20y",
        "/kiln/artifacts/20261123T172233Z-t-3f9a1c/Disk.vhd",
        "/kiln/artifacts/20261123T172233Z-t-3f9a1c/../plan.json",
        "/kiln/artifacts/20261123T172233Z-t-3f9a1c/%2e%2e%2fplan.json",
        &format!("/kiln/inputs/{digest}"),
        "/kiln/inputs/abc",
        "/kiln/status",
        "/kiln/gc",
        "/kiln/activity",
        "/kiln/openapi.json",
        "/kiln/nothing",
    ]));
}

#[test]
fn nothing_there() {
    expect![[r#"
        /
            ! Nowhere

            ! Nowhere
        /favicon.ico
            ! Nowhere
        /subscriptions/S/nothing
            ! Type { namespace: "Microsoft.Resources", name: "nothing" }
        /subscriptions/S/resourceGroups/rg/nothing
            ! Type { namespace: "Microsoft.Resources", name: "resourceGroups/nothing" }
        /subscriptions/S/resourceGroups/rg/providers/Microsoft.Compute/images/x
            ! Namespace("Microsoft.Compute")
        /subscriptions/S/resourceGroups/rg/providers/Microsoft.VirtualMachineImages
            ! Type { namespace: "Microsoft.VirtualMachineImages", name: "" }
        B/imageTemplate/t
            ! Type { namespace: "Microsoft.VirtualMachineImages", name: "imageTemplate" }
        B/imageTemplates/t/start
            ! Type { namespace: "Microsoft.VirtualMachineImages", name: "imageTemplates/start" }
        B/imageTemplates/t/run/now
            ! Type { namespace: "Microsoft.VirtualMachineImages", name: "imageTemplates/run" }
        B/imageTemplates/t/runOutputs/x/y
            ! Type { namespace: "Microsoft.VirtualMachineImages", name: "imageTemplates/runOutputs/y" }
        /subscriptions/S/providers/Microsoft.Compute/images
            ! Namespace("Microsoft.Compute")
        /subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local
            ! Type { namespace: "Microsoft.VirtualMachineImages", name: "locations" }
        /providers/Microsoft.Compute/operations
            ! Namespace("Microsoft.Compute")
        /providers/Microsoft.VirtualMachineImages/nothing
            ! Type { namespace: "Microsoft.VirtualMachineImages", name: "nothing" }
        B/imageTemplates/..
            ! Uri(Dots)
        B/imageTemplates/%2e%2e/x
            ! Uri(Dots)
        B/imageTemplates/a%2fb
            ! Uri(Character)
        B/imageTemplates/a%00b
            ! Uri(Character)
        B/imageTemplates/a%ff
            ! Uri(NotUtf8)
        B/imageTemplates/a%zz
            ! Uri(Percent)
        /common/oauth2/authorize
            ! Nowhere
    "#]]
    .assert_eq(&table(&[
        "/",
        "",
        "/favicon.ico",
        "/subscriptions/S/nothing",
        "/subscriptions/S/resourceGroups/rg/nothing",
        "/subscriptions/S/resourceGroups/rg/providers/Microsoft.Compute/images/x",
        "/subscriptions/S/resourceGroups/rg/providers/Microsoft.VirtualMachineImages",
        "B/imageTemplate/t",
        "B/imageTemplates/t/start",
        "B/imageTemplates/t/run/now",
        "B/imageTemplates/t/runOutputs/x/y",
        "/subscriptions/S/providers/Microsoft.Compute/images",
        "/subscriptions/S/providers/Microsoft.VirtualMachineImages/locations/local",
        "/providers/Microsoft.Compute/operations",
        "/providers/Microsoft.VirtualMachineImages/nothing",
        "B/imageTemplates/..",
        "B/imageTemplates/%2e%2e/x",
        "B/imageTemplates/a%2fb",
        "B/imageTemplates/a%00b",
        "B/imageTemplates/a%ff",
        "B/imageTemplates/a%zz",
        "/common/oauth2/authorize",
    ]));
}

#[test]
fn methods() {
    let of = |path: &str| {
        let route = Route::parse(path).unwrap();
        route.methods().iter().map(Method::as_str).collect::<Vec<_>>().join(" ")
    };
    let base = format!(
        "/subscriptions/{S}/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates"
    );
    assert_eq!(of(&base), "GET HEAD");
    assert_eq!(of(&format!("{base}/t")), "GET HEAD PUT PATCH DELETE");
    assert_eq!(of(&format!("{base}/t/run")), "POST");
    assert_eq!(of(&format!("{base}/t/cancel")), "POST");
    assert_eq!(of(&format!("{base}/t/triggers/x")), "GET HEAD PUT DELETE");
    assert_eq!(of(&format!("/subscriptions/{S}/resourceGroups/rg")), "GET HEAD PUT DELETE");
    assert_eq!(of("/msi/token"), "GET HEAD POST");
    assert_eq!(of(&format!("{base}/t/runs/latest/retry")), "POST");
    assert_eq!(of("/kiln/gc"), "POST");
}

/// Who may ask without a token: exactly these.
#[test]
fn open_routes() {
    for (path, open) in [
        ("/metadata/endpoints", true),
        ("/aliases.json", true),
        ("/msi/token", true),
        ("/common/oauth2/v2.0/token", true),
        ("/kiln/openapi.json", true),
        ("/kiln/health", true),
        ("/kiln/status", false),
        ("/kiln/activity", false),
        ("/tenants", false),
        ("/subscriptions", false),
        ("/providers/Microsoft.VirtualMachineImages/operations", false),
    ] {
        assert_eq!(Route::parse(path).unwrap().is_open(), open, "{path}");
    }
}

proptest::proptest! {
    /// Whatever comes, it is parsed or refused; a name that comes out is one segment, decoded.
    #[test]
    fn any_path(path in "(/[a-zA-Z0-9%._~/-]{0,40}){0,12}") {
        if let Ok(Route::Images(route)) = Route::parse(&path) {
            let text = format!("{route:?}");
            proptest::prop_assert!(!text.contains("\"..\"") && !text.contains('/'), "{}", text);
        }
    }

    #[test]
    fn any_template_name(name in "\\PC{1,40}") {
        let mut encoded = String::new();
        for byte in name.bytes() {
            encoded.push_str(&format!("%{byte:02x}"));
        }
        let path = format!("/subscriptions/s/resourceGroups/g/providers/microsoft.virtualmachineimages/imagetemplates/{encoded}");
        match Route::parse(&path) {
            Ok(route) => proptest::prop_assert!(route.scope().ends_with(&name), "{:?}", route),
            Err(error) => proptest::prop_assert!(
                matches!(error, RouteError::Uri(_)) && (name.contains(['/', '\\']) || name == "." || name == ".."),
                "{:?} {:?}", name, error
            ),
        }
    }
}
