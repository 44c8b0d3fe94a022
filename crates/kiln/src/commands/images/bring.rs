//! Bringing base images into the library: by download, or from a file of one's own.

use anyhow::Context as _;
use kiln_library::{ImageError, ImageProgress, ImportRequest, Imported};
use kiln_model::Sha256;
use kiln_model::catalog::{
    Arch, CatalogSource, Credentials, Generation, Listener, Login, Os, ServedName, certificate_digest,
};

use super::super::shelves::Shelves;
use super::super::{End, Surroundings, signals};
use crate::args::{GenerationArg, ImagesImportArgs, InstalledArgs, OsArg};
use crate::exit::{ExitStatus, Failure};
use crate::progress::transfer::Transfers;
use crate::settings::{self, Folders};
use crate::ui::text;

pub async fn pull(around: &Surroundings<'_>, folders: &Folders, name: &str) -> End {
    let shelves = Shelves::open(folders)?;
    let entry = super::entry(&shelves, name)?;
    if let CatalogSource::Recipe { .. } = entry.source {
        return Err(Failure::input(anyhow::anyhow!("{name} is not downloaded but made here"))
            .hint(format!("`kiln images build {name}` makes it")));
    }
    let qemu_img = super::qemu_img(around)?;
    let fetch = settings::fetch(around.environment).map_err(Failure::host)?;
    let control = signals::control().map_err(Failure::host)?;
    let transfers = Transfers::new(around.printer, around.verbose > 0);
    let report = |progress| show(&transfers, name, progress);
    let pulled = shelves.library()?.pull(entry, &fetch, &qemu_img, &report, &control).await;
    drop(transfers);
    stored(around, pulled)
}

pub async fn import(around: &Surroundings<'_>, folders: &Folders, args: ImagesImportArgs) -> End {
    let name = args.name.clone();
    let request = resolve(args)?;
    let qemu_img = super::qemu_img(around)?;
    let shelves = Shelves::open(folders)?;
    let control = signals::control().map_err(Failure::host)?;
    let transfers = Transfers::new(around.printer, around.verbose > 0);
    let report = |progress| show(&transfers, &name, progress);
    let imported = shelves.library()?.import(&request, &qemu_img, &report, &control).await;
    drop(transfers);
    if let Ok(imported) = &imported
        && imported.image.login != request.login
    {
        // It was there already, and a record is not written again.
        around.printer.warning(&format!(
            "{} {} keeps the login it was imported with, by {}; give this one another --version",
            imported.image.name, imported.image.version, imported.image.login
        ));
    }
    stored(around, imported)
}

fn resolve(args: ImagesImportArgs) -> Result<ImportRequest, Failure> {
    let ImagesImportArgs { file, name, image_version, platform, os, generation, sha256, installed } = args;
    let generations = match generation {
        None => Vec::new(),
        Some(GenerationArg::One) => vec![Generation::V1],
        Some(GenerationArg::Two) => vec![Generation::V2],
    };
    let sha256 = sha256
        .map(|hex| {
            hex.parse::<Sha256>()
                .map_err(|error| Failure::input(anyhow::Error::new(error).context("--sha256")))
        })
        .transpose()?;
    let os = match os {
        OsArg::Linux => Os::Linux,
        OsArg::Windows => Os::Windows,
    };
    Ok(ImportRequest {
        path: file,
        name,
        version: image_version.unwrap_or_else(super::version_of_now),
        platform: platform.iter().map(|text| served_name(text)).collect::<Result<_, _>>()?,
        os,
        generations,
        arch: Arch::X86_64,
        login: login(os, installed)?,
        sha256,
    })
}

fn login(os: Os, installed: InstalledArgs) -> Result<Login, Failure> {
    let InstalledArgs { user, password_file, winrm_http, winrm_port, certificate_sha256 } = installed;
    let (Some(user), Some(file)) = (user, password_file) else {
        return Ok(match os {
            Os::Linux => Login::CloudInit,
            Os::Windows => Login::AnswerFile,
        });
    };
    if os == Os::Linux {
        return Err(Failure::input(anyhow::anyhow!(
            "--user and --password-file are for a Windows that is installed already; a build gets into a Linux through \
             cloud-init"
        ))
        .hint("for a Windows, add `--os windows`; for a Linux, leave both out"));
    }
    let unusable =
        |error| Failure::input(anyhow::Error::new(error).context("no build could log in to this Windows"));
    let listener = if winrm_http {
        Listener::Http
    } else {
        let certificate = certificate_sha256.as_deref().map(certificate_digest).transpose();
        Listener::Https { certificate: certificate.map_err(unusable)? }
    };
    // Builds run in other folders than this one.
    let file = std::path::absolute(&file)
        .with_context(|| format!("cannot tell where {} is", file.display()))
        .map_err(Failure::input)?;
    Credentials::new(user, file, listener, winrm_port).map(Login::Credentials).map_err(unusable)
}

/// `PUBLISHER:OFFER:SKU`.
fn served_name(text: &str) -> Result<ServedName, Failure> {
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [publisher, offer, sku] if [publisher, offer, sku].iter().all(|part| !part.is_empty()) => {
            Ok(ServedName {
                publisher: (*publisher).to_owned(),
                offer: (*offer).to_owned(),
                sku: (*sku).to_owned(),
                generation: None,
            })
        }
        _ => Err(Failure::input(anyhow::anyhow!(
            "--platform {text:?} is not PUBLISHER:OFFER:SKU, for example Contoso:linux:golden"
        ))),
    }
}

/// Shows how an image comes into the library.
pub fn show(transfers: &Transfers<'_>, name: &str, progress: ImageProgress) {
    match progress {
        ImageProgress::Downloading { done, total } => transfers.advance(0, name, done, total),
        ImageProgress::Retrying { message, after, .. } => {
            transfers.end(0);
            transfers.talk(&format!("{message}; again in {}", text::duration(after)));
        }
        ImageProgress::Reading { done, total } => {
            transfers.end(0);
            transfers.advance(1, "checking", done, Some(total));
        }
        ImageProgress::Copying { done, total } => {
            transfers.end(1);
            transfers.advance(2, "copying", done, Some(total));
        }
        ImageProgress::Converting { done } => {
            transfers.end(1);
            transfers.percent(3, "converting to qcow2", done);
        }
    }
}

/// Says what lies in the library now.
pub fn stored(around: &Surroundings<'_>, imported: Result<Imported, ImageError>) -> End {
    let imported = imported.map_err(|error| {
        let interrupted = error.interrupted().is_some();
        let failure = Failure::new(error.fault(), error);
        if interrupted { failure.hint("the same command goes on where it stopped") } else { failure }
    })?;
    let printer = around.printer;
    let image = &imported.image;
    let how = if imported.was_there() { "was already in the library" } else { "is in the library" };
    let generations: Vec<String> = image.generations.iter().map(|g| format!("{g:?}")).collect();
    printer.talk(&format!(
        "{} {} {how}: disk of {}, boots as {}, sha256 {}",
        image.name,
        image.version,
        text::bytes(image.virtual_size),
        generations.join(" and "),
        image.sha256
    ));
    if let Login::Credentials(own) = &image.login {
        printer.talk(&format!("  login by {own}"));
    }
    for served in &image.platform {
        printer.talk(&format!("  templates call it {}", served.name()));
    }
    Ok(ExitStatus::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(user: Option<&str>, file: &str) -> InstalledArgs {
        InstalledArgs {
            user: user.map(str::to_owned),
            password_file: user.map(|_| file.into()),
            winrm_http: false,
            winrm_port: None,
            certificate_sha256: None,
        }
    }

    #[test]
    fn the_login_follows_from_the_system_and_what_is_known_of_it() {
        assert_eq!(login(Os::Linux, installed(None, "")).unwrap(), Login::CloudInit);
        assert_eq!(login(Os::Windows, installed(None, "")).unwrap(), Login::AnswerFile);
        let Login::Credentials(own) = login(Os::Windows, installed(Some("u"), "p")).unwrap() else {
            panic!()
        };
        assert_eq!(own.password_file(), std::path::absolute("p").unwrap());
        assert_eq!((own.listener(), own.port()), (Listener::Https { certificate: None }, 5986));
        let http = InstalledArgs { winrm_http: true, winrm_port: Some(80), ..installed(Some("u"), "/p") };
        let Login::Credentials(own) = login(Os::Windows, http).unwrap() else { panic!() };
        assert_eq!((own.listener(), own.port()), (Listener::Http, 80));

        let refused = |os, args| format!("{:#}", login(os, args).unwrap_err().error);
        assert!(refused(Os::Linux, installed(Some("u"), "/p")).contains("through cloud-init"));
        assert!(refused(Os::Windows, installed(Some(""), "/p")).contains("user: it is empty"));
        let no_digest =
            InstalledArgs { certificate_sha256: Some("abc".to_owned()), ..installed(Some("u"), "/p") };
        assert!(refused(Os::Windows, no_digest).contains("certificateSha256: \"abc\" is no digest"));
    }

    #[test]
    fn platform_names_have_three_parts() {
        let served = served_name("Contoso:linux:golden-gen2").unwrap();
        assert_eq!(served.name().to_string(), "Contoso:linux:golden-gen2");
        for bad in ["", "a:b", "a:b:c:d", "a::c", ":b:c"] {
            assert!(served_name(bad).is_err(), "{bad:?}");
        }
    }
}
