//! `kiln az-setup`: what connects Azure's clients to the server of this host.
//!
//! No secret is printed. `az` reads it from its file (`=@FILE`: after a space, a secret that begins
//! with a hyphen would be an option), a shell from the file when it evaluates the lines; the file has
//! no line feed at its end, for either would send it along.

use std::path::{Path, PathBuf};

use kiln_daemon::config::Config;
use kiln_daemon::setup::ClientSetup;
use serde_json::json;

use super::template::pretty;
use super::{End, Surroundings};
use crate::args::AzSetupArgs;
use crate::exit::{ExitStatus, Failure};
use crate::settings::Folders;
use crate::ui::text::shell_word;

/// The newest format of `kiln az-setup --json`.
const SETUP_FORMAT: u32 = 1;
/// Settings of the packaged service.
const PACKAGED_CONFIG: &str = "/etc/kiln/kiln.yaml";
/// What `az` calls this server.
const CLOUD: &str = "Kiln";

pub fn run(around: &Surroundings<'_>, args: &AzSetupArgs) -> End {
    let AzSetupArgs { data, shell, sdk, identity, json } = args;
    let (data, config) = which(around, data.as_deref())?;
    let setup = ClientSetup::read(&data, &config).map_err(Failure::host)?;
    let printer = around.printer;
    if *json {
        printer.data(&pretty(&json!({
            "format": SETUP_FORMAT,
            "url": setup.url,
            "serving": setup.serving,
            "caFile": setup.ca_file,
            "tenant": setup.tenant,
            "subscription": setup.subscription,
            "resourceGroup": setup.resource_group,
            "location": setup.location,
            "clientId": setup.client_id,
            "secretFile": setup.secret_file,
        }))?);
        return Ok(ExitStatus::Done);
    }
    let login = if *identity { as_identity(&setup)? } else { as_operator(&setup) };
    let steps = if *sdk { sdk_steps(&setup) } else { az_steps(&setup, login) };
    for Step { why, lines } in &steps {
        if !*shell {
            printer.data(&format!("# {why}"));
        }
        lines.iter().for_each(|line| printer.data(line));
    }
    if !setup.serving {
        printer.warning(&format!("nothing serves {} now: `kiln serve` does", setup.url));
    }
    if !*shell {
        let kind = match (sdk, identity) {
            (true, _) => " --sdk",
            (_, true) => " --identity",
            _ => "",
        };
        printer.hint(&format!("eval \"$(kiln az-setup{kind} --shell)\" does all of it"));
    }
    Ok(ExitStatus::Done)
}

/// The data folder and the configuration of the server that is meant: as `kiln serve` would have
/// them, or the packaged service's where this user never served.
fn which(around: &Surroundings<'_>, given: Option<&Path>) -> Result<(PathBuf, Config), Failure> {
    let environment = around.environment;
    let config = crate::server::read_config(environment)?;
    // The environment over the file.
    let named = given.or(environment.data_folder()).or(config.data.as_deref()).map(Path::to_owned);
    let own = Folders::with_data(environment, named.as_deref()).map_err(Failure::host)?.data;
    let packaged = Path::new(PACKAGED_CONFIG);
    if named.is_none() && !own.join("server").exists() && packaged.exists() {
        let config = Config::read(packaged).map_err(|error| {
            Failure::host(error).hint("the package's settings are for root and the service alone: use sudo")
        })?;
        if let Some(data) = config.data.clone() {
            return Ok((data, config));
        }
    }
    Ok((own, config))
}

/// Lines for a shell, and what they are for.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    why: &'static str,
    lines: Vec<String>,
}

fn word(path: &Path) -> String {
    shell_word(&path.display().to_string())
}

/// The service principal made at first start.
fn as_operator(setup: &ClientSetup) -> Step {
    Step {
        why: "sign in here, not at login.microsoftonline.com; az reads the secret from its file",
        lines: vec![
            "az config set core.instance_discovery=false --only-show-errors".to_owned(),
            format!(
                "az login --service-principal --username {} --password={} --tenant {} --output none",
                shell_word(&setup.client_id),
                shell_word(&format!("@{}", setup.secret_file.display())),
                shell_word(&setup.tenant)
            ),
        ],
    }
}

/// As App Service has it: an endpoint, and a header that proves to be of this host.
fn as_identity(setup: &ClientSetup) -> Result<Step, Failure> {
    let Some(identity) = &setup.identity else {
        return Err(Failure::input(anyhow::anyhow!(
            "managed identity is switched off here (access.managedIdentity.enabled)"
        )));
    };
    Ok(Step {
        why: "sign in as whoever may read the identity's secret",
        lines: vec![
            format!("export IDENTITY_ENDPOINT={}", shell_word(&identity.endpoint)),
            format!("IDENTITY_HEADER=\"$(cat {})\"", word(&identity.secret_file)),
            "export IDENTITY_HEADER".to_owned(),
            "az login --identity --output none".to_owned(),
        ],
    })
}

/// What `az` needs: contract, section 9.
fn az_steps(setup: &ClientSetup, login: Step) -> Vec<Step> {
    let url = shell_word(&setup.url);
    let mut steps = Vec::new();
    if let Some(ca) = &setup.ca_file {
        steps.push(Step {
            why: "trust the server's certificate authority (in this shell)",
            lines: vec![format!("export REQUESTS_CA_BUNDLE={}", word(ca))],
        });
    }
    let register = |verb| format!("az cloud {verb} --name {CLOUD} --endpoint-resource-manager {url}");
    steps.push(Step {
        why: "make the server known as a cloud, and choose it",
        lines: vec![
            format!("{} 2>/dev/null || {}", register("update"), register("register")),
            format!("az cloud set --name {CLOUD}"),
        ],
    });
    steps.push(login);
    steps.push(Step {
        why: "what az uses where a command does not say",
        lines: vec![
            format!("az account set --subscription {}", shell_word(&setup.subscription)),
            // No default location: az would then list only what lies there.
            format!("az config set defaults.group={} --only-show-errors", shell_word(&setup.resource_group)),
        ],
    });
    steps
}

/// What azure-identity and the management clients read, and what a program gives them itself.
fn sdk_steps(setup: &ClientSetup) -> Vec<Step> {
    let export = |name: &str, value: &str| format!("export {name}={}", shell_word(value));
    let mut steps = Vec::new();
    if let Some(ca) = &setup.ca_file {
        steps.push(Step {
            why: "trust the server's certificate authority: Python, and what uses OpenSSL or Go",
            lines: ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"]
                .map(|name| format!("export {name}={}", word(ca)))
                .to_vec(),
        });
    }
    steps.push(Step {
        why: "EnvironmentCredential; give it disable_instance_discovery=True",
        lines: vec![
            export("AZURE_AUTHORITY_HOST", &setup.url),
            export("AZURE_TENANT_ID", &setup.tenant),
            export("AZURE_CLIENT_ID", &setup.client_id),
            format!("AZURE_CLIENT_SECRET=\"$(cat {})\"", word(&setup.secret_file)),
            "export AZURE_CLIENT_SECRET".to_owned(),
        ],
    });
    steps.push(Step {
        why: "ImageBuilderClient(credential, subscription, base_url=KILN_ENDPOINT, credential_scopes=[KILN_ENDPOINT + \"/.default\"])",
        lines: vec![
            export("AZURE_SUBSCRIPTION_ID", &setup.subscription),
            export("AZURE_RESOURCE_GROUP", &setup.resource_group),
            export("AZURE_LOCATION", &setup.location),
            export("KILN_ENDPOINT", &setup.url),
        ],
    });
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn setup() -> ClientSetup {
        ClientSetup {
            url: "https://localhost:8441".into(),
            serving: true,
            ca_file: Some("/srv/my kiln/server/tls/ca.pem".into()),
            tenant: "11111111-1111-1111-1111-111111111111".into(),
            subscription: "22222222-2222-2222-2222-222222222222".into(),
            resource_group: "it's".into(),
            location: "local".into(),
            client_id: "operator".into(),
            secret_file: "/srv/my kiln/server/operator.secret".into(),
            identity: None,
        }
    }

    fn script(steps: &[Step]) -> String {
        steps.iter().flat_map(|step| &step.lines).map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn commands_for_az() {
        expect![[r#"
            export REQUESTS_CA_BUNDLE='/srv/my kiln/server/tls/ca.pem'
            az cloud update --name Kiln --endpoint-resource-manager https://localhost:8441 2>/dev/null || az cloud register --name Kiln --endpoint-resource-manager https://localhost:8441
            az cloud set --name Kiln
            az config set core.instance_discovery=false --only-show-errors
            az login --service-principal --username operator --password='@/srv/my kiln/server/operator.secret' --tenant 11111111-1111-1111-1111-111111111111 --output none
            az account set --subscription 22222222-2222-2222-2222-222222222222
            az config set defaults.group='it'\''s' --only-show-errors
        "#]].assert_eq(&script(&az_steps(&setup(), as_operator(&setup()))));
    }

    #[test]
    fn managed_identity_where_it_is_switched_on() {
        assert!(as_identity(&setup()).is_err());
        let identity = kiln_daemon::setup::IdentitySetup {
            endpoint: "https://localhost:8441/msi/token".into(),
            secret_file: "/srv/my kiln/server/identity.secret".into(),
        };
        let setup = ClientSetup { identity: Some(identity), ..setup() };
        expect![[r#"
            export IDENTITY_ENDPOINT=https://localhost:8441/msi/token
            IDENTITY_HEADER="$(cat '/srv/my kiln/server/identity.secret')"
            export IDENTITY_HEADER
            az login --identity --output none
        "#]]
        .assert_eq(&script(&[as_identity(&setup).unwrap()]));
    }

    #[test]
    fn variables_for_sdks() {
        expect![[r#"
            export REQUESTS_CA_BUNDLE='/srv/my kiln/server/tls/ca.pem'
            export SSL_CERT_FILE='/srv/my kiln/server/tls/ca.pem'
            export AZURE_AUTHORITY_HOST=https://localhost:8441
            export AZURE_TENANT_ID=11111111-1111-1111-1111-111111111111
            export AZURE_CLIENT_ID=operator
            AZURE_CLIENT_SECRET="$(cat '/srv/my kiln/server/operator.secret')"
            export AZURE_CLIENT_SECRET
            export AZURE_SUBSCRIPTION_ID=22222222-2222-2222-2222-222222222222
            export AZURE_RESOURCE_GROUP='it'\''s'
            export AZURE_LOCATION=local
            export KILN_ENDPOINT=https://localhost:8441
        "#]]
        .assert_eq(&script(&sdk_steps(&setup())));
    }

    #[test]
    fn a_configured_certificate_needs_no_trust_of_ours() {
        let setup = ClientSetup { ca_file: None, ..setup() };
        let both = script(&az_steps(&setup, as_operator(&setup))) + &script(&sdk_steps(&setup));
        assert!(!both.contains("CA_BUNDLE") && !both.contains("SSL_CERT_FILE"), "{both}");
    }
}
