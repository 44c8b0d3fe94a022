//! What a run's end reads like: the service's own texts, which people search for, and the cause in ours.
//!
//! The texts are those Azure VM Image Builder answers with in `lastRunStatus.message` and in the `error` of a run's
//! operation. The service hides the cause in a log somewhere else; here it stands in the message itself.

use kiln_build::run_dir::RunId;
use kiln_model::run::RunState;

use crate::store::{OperationError, OperationStatus, TemplateId};

/// How the service's own texts begin; `finish` of the worker writes it, too.
const TIMEOUT: &str = "Timeout waiting for microservice to complete: 'context deadline exceeded'";

/// Path of a run's `customization.log` on this server.
pub fn log_location(template: &TemplateId, run: &RunId) -> String {
    format!("{}/runs/{run}/customization.log", template.arm_id())
}

/// For a worker that was ended from outside because it did not end itself.
pub(super) fn overdue(minutes: u32) -> String {
    format!("{TIMEOUT} (buildTimeoutInMinutes is {minutes}; the worker did not end by itself and was killed)")
}

/// A run's end, as its template and its operation tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndText {
    /// `lastRunStatus.message`.
    pub message: String,
    pub status: OperationStatus,
    pub error: Option<OperationError>,
}

/// `cause` is one sentence of Kiln's own; unused where nothing went wrong.
pub(super) fn of_end(
    state: RunState,
    cause: &str,
    template: &TemplateId,
    run: &RunId,
    operation: &str,
) -> EndText {
    let location = log_location(template, run);
    let cause = cause.trim_end().trim_end_matches('.');
    let search = format!("OperationId: {operation}. Use this operationId to search packer logs.");
    match state {
        RunState::Failed => EndText {
            message: format!(
                "{}. During the image build, a failure has occurred, please review the build log to identify which \
                 build/customization step failed. For more troubleshooting steps go to \
                 https://aka.ms/azvmimagebuilderts. Image Build log location: {location}. {search}",
                packerizer(cause)
            ),
            status: OperationStatus::Failed,
            error: Some(OperationError {
                code: "PackerBuildFailed".to_owned(),
                message: format!(
                    "During the image build a failure has occurred. {}. Packer build logs are at location {location}. {search}",
                    capitalized(cause)
                ),
            }),
        },
        RunState::Canceled => EndText {
            message: format!("The image build was canceled. Image Build log location: {location}. {search}"),
            status: OperationStatus::Canceled,
            error: Some(OperationError {
                code: "Canceled".to_owned(),
                message: format!(
                    "The image build was canceled. Packer build logs are at location {location}. {search}"
                ),
            }),
        },
        // Distributed in part is told by the state; what was not is in the message.
        RunState::PartiallySucceeded => EndText {
            message: format!("Distributed in part: {cause}. Image Build log location: {location}. {search}"),
            status: OperationStatus::Succeeded,
            error: None,
        },
        RunState::Succeeded | RunState::Running | RunState::Canceling => {
            EndText { message: String::new(), status: OperationStatus::Succeeded, error: None }
        }
    }
}

fn packerizer(cause: &str) -> String {
    if let Some(at) = cause.find(TIMEOUT) {
        return format!(
            "Failed in building/customizing image: Failed while waiting for packerizer: {}",
            &cause[at..]
        );
    }
    format!(
        "Failed while waiting for packerizer: Microservice has failed: Failed to run packer build command: {cause}. \
         Packer build command has failed: exit status 1"
    )
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn ended(state: RunState, cause: &str) -> String {
        let template =
            TemplateId { subscription: "s".into(), resource_group: "rg".into(), name: "hello".into() };
        let run = "20260102T030405Z-hello-3f9a1c".parse().unwrap();
        let text = of_end(state, cause, &template, &run, "0a1b2c3d-0000-4000-8000-000000000000");
        let error = text.error.map(|error| format!("({}) {}", error.code, error.message));
        format!("{}\n{:?}\n{}", text.message, text.status, error.unwrap_or_default())
    }

    #[test]
    fn a_failing_customizer() {
        expect![[r#"
            Failed while waiting for packerizer: Microservice has failed: Failed to run packer build command: Shell "install nginx": Script exited with non-zero exit status: 100. Allowed exit codes are: [0]. Packer build command has failed: exit status 1. During the image build, a failure has occurred, please review the build log to identify which build/customization step failed. For more troubleshooting steps go to https://aka.ms/azvmimagebuilderts. Image Build log location: /subscriptions/s/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/hello/runs/20260102T030405Z-hello-3f9a1c/customization.log. OperationId: 0a1b2c3d-0000-4000-8000-000000000000. Use this operationId to search packer logs.
            Failed
            (PackerBuildFailed) During the image build a failure has occurred. Shell "install nginx": Script exited with non-zero exit status: 100. Allowed exit codes are: [0]. Packer build logs are at location /subscriptions/s/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/hello/runs/20260102T030405Z-hello-3f9a1c/customization.log. OperationId: 0a1b2c3d-0000-4000-8000-000000000000. Use this operationId to search packer logs."#]]
        .assert_eq(&ended(RunState::Failed, "Shell \"install nginx\": Script exited with non-zero exit status: 100. Allowed exit codes are: [0]"));
    }

    #[test]
    fn a_timeout_and_a_killed_worker_begin_as_the_services_do() {
        let begin = "Failed in building/customizing image: Failed while waiting for packerizer: Timeout waiting for \
                     microservice to complete: 'context deadline exceeded' (buildTimeoutInMinutes is 6; ";
        let timeout = format!("{TIMEOUT} (buildTimeoutInMinutes is 6; it ran: Shell \"sleep\")");
        assert!(ended(RunState::Failed, &timeout).starts_with(begin));
        let killed = format!("the worker ended without finishing the run ({})", overdue(6));
        assert!(ended(RunState::Failed, &killed).starts_with(begin));
    }

    #[test]
    fn other_ends() {
        expect![[r#"
            The image build was canceled. Image Build log location: /subscriptions/s/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/hello/runs/20260102T030405Z-hello-3f9a1c/customization.log. OperationId: 0a1b2c3d-0000-4000-8000-000000000000. Use this operationId to search packer logs.
            Canceled
            (Canceled) The image build was canceled. Packer build logs are at location /subscriptions/s/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/hello/runs/20260102T030405Z-hello-3f9a1c/customization.log. OperationId: 0a1b2c3d-0000-4000-8000-000000000000. Use this operationId to search packer logs."#]]
        .assert_eq(&ended(RunState::Canceled, "the run was canceled"));
        expect![[r#"
            Distributed in part: a.vhd made; could not write the VHD of "b": no room. Image Build log location: /subscriptions/s/resourceGroups/rg/providers/Microsoft.VirtualMachineImages/imageTemplates/hello/runs/20260102T030405Z-hello-3f9a1c/customization.log. OperationId: 0a1b2c3d-0000-4000-8000-000000000000. Use this operationId to search packer logs.
            Succeeded
        "#]]
        .assert_eq(&ended(
            RunState::PartiallySucceeded,
            "a.vhd made; could not write the VHD of \"b\": no room",
        ));
        assert_eq!(ended(RunState::Succeeded, "out.vhd made"), "\nSucceeded\n");
    }
}
