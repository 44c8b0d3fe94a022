//! `az`, as people use it: `image builder`, `resource`, `rest`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_tests::daemon::Daemon;
use kiln_tests::footer;
use kiln_tests::kiln::Kiln;
use kiln_tests::program::{self, command};
use kiln_tests::slots;
use kiln_tests::template::{Template, debian, tiny};
use serde_json::{Value, json};

use super::{client, evaluated, path_with, run};

/// `az` with a configuration of its own, connected to one daemon.
struct Az<'a> {
    daemon: &'a Daemon<'a>,
    environment: BTreeMap<String, String>,
}

impl<'a> Az<'a> {
    fn not_connected(daemon: &'a Daemon<'a>) -> Self {
        let config = daemon.kiln().path().join("azure");
        let environment = [
            ("PATH", path_with(&client("az"))),
            ("AZURE_CONFIG_DIR", config.display().to_string()),
            ("AZURE_CORE_COLLECT_TELEMETRY", "no".into()),
            ("AZURE_CORE_LOGIN_EXPERIENCE_V2", "off".into()),
            ("HOME", daemon.kiln().path().display().to_string()),
        ];
        let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { daemon, environment }
    }

    /// By the commands that `kiln az-setup` prints.
    fn connected(daemon: &'a Daemon<'a>) -> Self {
        let mut az = Self::not_connected(daemon);
        let set = evaluated(daemon, &[], &az.environment);
        az.environment.extend(set);
        az
    }

    fn try_run(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut az = command("az");
        az.args(args).envs(&self.environment).current_dir(self.daemon.kiln().path());
        run(az)
    }

    /// Expects success; answers the JSON it printed, if any.
    #[track_caller]
    fn run(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.try_run(args);
        assert_eq!(code, Some(0), "az {}\n{out}\n{err}", args.join(" "));
        if out.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&out).unwrap_or(Value::String(out))
        }
    }

    /// Expects failure; answers what it said.
    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let (code, out, err) = self.try_run(args);
        assert_ne!(code, Some(0), "az {} succeeded:\n{out}", args.join(" "));
        err
    }

    fn file(&self, name: &str, template: &Template, envelope: bool) -> String {
        let path = self.daemon.kiln().path().join(name);
        std::fs::write(&path, if envelope { template.text() } else { template.resource() }).unwrap();
        path.display().to_string()
    }

    fn group(&self) -> String {
        let id = self.daemon.template_id("x");
        id.split('/').nth(4).unwrap().to_owned()
    }

    /// Downloads what an `artifactUri` names, with the client's own token.
    fn download(&self, uri: &str) -> PathBuf {
        let token = self.run(&["account", "get-access-token", "--query", "accessToken", "-o", "json"]);
        let to = self.daemon.kiln().path().join("downloaded.vhd");
        let header = format!("Authorization: Bearer {}", token.as_str().unwrap());
        let ca = self.daemon.ca();
        program::output(
            "curl",
            ["-sSf", "--cacert", ca.to_str().unwrap(), "-H", &header, "-o", to.to_str().unwrap(), uri],
        );
        to
    }
}

fn identity(daemon: &Daemon<'_>) -> String {
    let id = daemon.template_id("x");
    let group = &id[..id.find("/providers/").unwrap()];
    format!("{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/Builder")
}

#[test]
fn image_builder() {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let az = Az::connected(&daemon);
    let group = az.group();
    let t1 = ["-g", group.as_str(), "-n", "t1"];
    let with = |words: &[&'static str], more: &[&str]| {
        let mut all: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        all.extend(t1.iter().chain(more).map(|word| (*word).to_owned()));
        all
    };
    let call = |words: &[&'static str], more: &[&str]| {
        let all = with(words, more);
        az.run(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let fails = |words: &[&'static str], more: &[&str]| {
        let all = with(words, more);
        az.fails(&all.iter().map(String::as_str).collect::<Vec<_>>())
    };

    let user = identity(&daemon);
    let template = tiny()
        .shell("make", ["echo built by az | sudo tee /srv/made"])
        .top("tags", json!({ "purpose": "test" }))
        .top("identity", json!({ "type": "UserAssigned", "userAssignedIdentities": { &user: {} } }));
    let file = az.file("t1.json", &template, true);
    let made = call(&["image", "builder", "create"], &["--image-template", &file]);
    assert_eq!(made["provisioningState"], "Succeeded", "{made:#}");
    assert_eq!(made["tags"]["purpose"], "test");
    let shown = call(&["image", "builder", "show"], &[]);
    assert_eq!(shown["id"], daemon.template_id("t1"));
    assert_eq!(shown["customize"][0]["name"], "make");
    let listed = az.run(&["image", "builder", "list", "-g", &group]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed:#}");
    assert_eq!(az.run(&["image", "builder", "list"])[0]["name"], "t1");

    // A template is immutable, but for what PATCH may change; replacing it is ours, by a tag.
    let said = fails(&["image", "builder", "create"], &["--image-template", &file]);
    assert!(said.contains("Update/Upgrade of image templates is currently not supported"), "{said}");

    {
        let _slot = slots::take();
        call(&["image", "builder", "run"], &[]);
    }
    let shown = call(&["image", "builder", "show"], &[]);
    assert_eq!(shown["lastRunStatus"]["runState"], "Succeeded", "{shown:#}");
    call(&["image", "builder", "wait"], &["--custom", "lastRunStatus.runState!='Running'"]);
    let runs = call(&["image", "builder", "show-runs"], &[]);
    assert_eq!(runs[0]["name"], "out", "{runs:#}");
    let id = format!("{}/runOutputs/out", daemon.template_id("t1"));
    for version in [None, Some("2020-02-14"), Some("2024-02-01")] {
        let mut args = vec!["resource", "show", "--ids", &id];
        if let Some(version) = version {
            args.extend(["--api-version", version]);
        }
        let output = az.run(&args);
        assert_eq!(output["id"], id, "{output:#}");
        assert_eq!(output["name"], "out");
        assert_eq!(output["type"], "Microsoft.VirtualMachineImages/imageTemplates/runOutputs");
        assert_eq!(output["properties"]["provisioningState"], "Succeeded");
        assert!(
            output["properties"]["artifactUri"].as_str().unwrap().starts_with(daemon.url()),
            "{output:#}"
        );
    }
    let vhd = az.download(runs[0]["artifactUri"].as_str().unwrap());
    footer::assert_fit_for_azure(&vhd);
    std::fs::remove_file(vhd).unwrap();

    // Identity: the client lower-cases what it sends back.
    let identities = call(&["image", "builder", "identity", "show"], &[]);
    assert_eq!(identities["type"], "UserAssigned", "{identities:#}");
    let other = user.replace("Builder", "Other");
    call(&["image", "builder", "identity", "remove"], &["--yes", "--user-assigned", &user]);
    call(&["image", "builder", "identity", "assign"], &["--user-assigned", &other]);
    let shown = call(&["image", "builder", "identity", "show"], &[]);
    let ids = shown["userAssignedIdentities"].as_object().unwrap();
    assert!(ids.keys().all(|id| id.eq_ignore_ascii_case(&other)), "{shown:#}");

    // Triggers.
    let trigger = ["--image-template-name", "t1", "-g", &group];
    let args =
        [&["image", "builder", "trigger", "create", "-n", "watch", "--kind", "SourceImage"], &trigger[..]];
    az.run(&args.concat());
    let args = [&["image", "builder", "trigger", "list"], &trigger[..]].concat();
    assert_eq!(az.run(&args)[0]["name"], "watch");
    az.run(&[&["image", "builder", "trigger", "delete", "-n", "watch", "--yes"], &trigger[..]].concat());
    assert_eq!(az.run(&args), json!([]));

    // Customizers of the client's own cache, sent by `update` as a PUT: Azure's answer is a conflict.
    let args = ["--customizer-name", "more", "--type", "shell", "--inline-script", "echo more", "--defer"];
    call(&["image", "builder", "customizer", "add"], &args);
    let said = fails(&["image", "builder", "update"], &[]);
    assert!(said.contains("not supported"), "{said}");

    call(&["image", "builder", "delete"], &[]);
    let said = fails(&["image", "builder", "show"], &[]);
    assert!(said.contains("ResourceNotFound"), "{said}");
    // Deleting what is not there is done already.
    call(&["image", "builder", "delete"], &[]);
}

/// Created from words instead of a file; run without waiting, canceled; a failing build is shown as one.
#[test]
fn image_builder_from_words_cancel_and_failure() {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let az = Az::connected(&daemon);
    let group = az.group();
    // Kept in the client's own cache until `update` sends it.
    let at = ["-g", group.as_str(), "-n", "words", "--defer"];
    let source =
        ["image", "builder", "create", "--image-source", "Kiln:tests:tiny:latest", "--identity", "Builder"];
    az.run(&[&source[..], &at[..]].concat());
    let step = ["--customizer-name", "one", "--type", "shell", "--inline-script", "echo one"];
    az.run(&[&["image", "builder", "customizer", "add"], &step[..], &at[..]].concat());
    az.run(&[&["image", "builder", "output", "add", "--is-vhd", "--output-name", "out"], &at[..]].concat());
    az.run(&["image", "builder", "update", "-g", &group, "-n", "words"]);
    let shown = az.run(&["image", "builder", "show", "-g", &group, "-n", "words"]);
    assert_eq!(shown["customize"][0]["inline"], json!(["echo one"]), "{shown:#}");
    assert_eq!(shown["distribute"][0]["type"], "VHD");
    az.run(&["image", "builder", "delete", "-g", &group, "-n", "words"]);

    let file = az.file("long.json", &tiny().shell("long", ["sleep 100000"]), true);
    az.run(&["image", "builder", "create", "-g", &group, "-n", "long", "--image-template", &file]);
    let _slot = slots::take();
    az.run(&["image", "builder", "run", "-g", &group, "-n", "long", "--no-wait"]);
    let said = az.fails(&["image", "builder", "run", "-g", &group, "-n", "long"]);
    assert!(said.contains("OperationNotAllowed") || said.contains("is not allowed"), "{said}");
    let said = az.fails(&["image", "builder", "delete", "-g", &group, "-n", "long"]);
    assert!(said.contains("is not allowed in provisioningState"), "{said}");
    az.run(&["image", "builder", "cancel", "-g", &group, "-n", "long"]);
    let condition = "lastRunStatus.runState=='Canceled'";
    az.run(&[
        "image",
        "builder",
        "wait",
        "-g",
        &group,
        "-n",
        "long",
        "--custom",
        condition,
        "--interval",
        "2",
    ]);
    az.run(&["image", "builder", "delete", "-g", &group, "-n", "long"]);

    let file = az.file("bad.json", &tiny().shell("bad", ["echo going wrong >&2", "exit 7"]), true);
    az.run(&["image", "builder", "create", "-g", &group, "-n", "bad", "--image-template", &file]);
    let said = az.fails(&["image", "builder", "run", "-g", &group, "-n", "bad"]);
    assert!(said.contains("PackerBuildFailed"), "{said}");
    let shown = az.run(&["image", "builder", "show", "-g", &group, "-n", "bad"]);
    let message = shown["lastRunStatus"]["message"].as_str().unwrap();
    assert!(
        message.contains("non-zero exit status: 7") && message.contains("customization.log"),
        "{message}"
    );
}

/// The way to everything that `az image builder` does not know: the resource as it is.
#[test]
fn resource_and_rest() {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let az = Az::connected(&daemon);
    let group = az.group();
    az.run(&["group", "create", "-n", "second", "-l", "westeurope"]);
    assert!(az.run(&["group", "list"]).as_array().unwrap().len() >= 2);
    let provider = az.run(&["provider", "show", "-n", "Microsoft.VirtualMachineImages"]);
    assert_eq!(provider["registrationState"], "Registered");
    az.run(&["provider", "register", "-n", "Microsoft.VirtualMachineImages", "--wait"]);
    assert!(!az.run(&["account", "list-locations"]).as_array().unwrap().is_empty());

    let kind = "Microsoft.VirtualMachineImages/imageTemplates";
    let template =
        tiny().shell("make", ["true"]).with("errorHandling", json!({ "onCustomizerError": "cleanup" }));
    let file = az.file("r.json", &template, true);
    let at = format!("@{file}");
    let names = ["-g", "second", "--resource-type", kind, "-n"];
    let create = |name: &str, more: &[&str]| {
        let words = ["resource", "create", "--is-full-object", "-p", &at, "-l", "westeurope"];
        az.run(&[&words[..], &names[..], &[name], more].concat())
    };
    create("with", &["--api-version", "2024-02-01"]);
    create("without", &[]);
    let shown = az.run(&[&["resource", "show"], &names[..], &["without"]].concat());
    assert_eq!(shown["properties"]["errorHandling"]["onCustomizerError"], "cleanup", "{shown:#}");
    let listed = az.run(&["resource", "list", "-g", "second", "--resource-type", kind]);
    assert_eq!(listed.as_array().unwrap().len(), 2, "{listed:#}");
    {
        let _slot = slots::take();
        az.run(&[&["resource", "invoke-action", "--action", "Run"], &names[..], &["without"]].concat());
    }
    let id = daemon.template_id("without").replace(&format!("/{group}/"), "/second/");
    let url = format!("{id}?api-version=2024-02-01");
    let shown = az.run(&["rest", "--method", "get", "--url", &url]);
    assert_eq!(shown["properties"]["lastRunStatus"]["runState"], "Succeeded", "{shown:#}");
    for name in ["with", "without"] {
        az.run(&[&["resource", "delete"], &names[..], &[name]].concat());
    }
    assert_eq!(az.run(&["resource", "list", "-g", "second", "--resource-type", kind]), json!([]));
    az.run(&["group", "delete", "-n", "second", "--yes"]);
}

/// The other way in: `az login --identity`, where the host itself is trusted.
#[test]
fn login_by_managed_identity() {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let mut az = Az::not_connected(&daemon);
    let set = evaluated(&daemon, &["--identity"], &az.environment);
    az.environment.extend(set);
    assert_eq!(az.run(&["account", "show"])["tenantId"], daemon.tenant());
    let file = az.file("t.json", &tiny(), true);
    az.run(&["image", "builder", "create", "-g", &az.group(), "-n", "t", "--image-template", &file]);
    assert_eq!(az.run(&["image", "builder", "list"])[0]["name"], "t");
}

/// The whole of it on the real base image.
#[test]
fn a_debian_image_by_invoke_action() {
    let kiln = Kiln::new();
    let daemon = Daemon::start(&kiln);
    let az = Az::connected(&daemon);
    let group = az.group();
    let template = debian().shell("motd", ["echo built over Azure\\'s own API | sudo tee /etc/motd"]);
    let file = az.file("debian.json", &template, true);
    az.run(&["image", "builder", "create", "-g", &group, "-n", "debian", "--image-template", &file]);
    let kind = "Microsoft.VirtualMachineImages/imageTemplates";
    {
        let _slot = slots::take();
        az.run(&[
            "resource",
            "invoke-action",
            "-g",
            &group,
            "--resource-type",
            kind,
            "-n",
            "debian",
            "--action",
            "Run",
        ]);
    }
    let runs = az.run(&["image", "builder", "show-runs", "-g", &group, "-n", "debian"]);
    let vhd = az.download(runs[0]["artifactUri"].as_str().unwrap());
    footer::assert_fit_for_azure(&vhd);
    assert_eq!(kiln_tests::disk::Disk::open(&vhd).text("/etc/motd"), "built over Azure's own API\n");
}
