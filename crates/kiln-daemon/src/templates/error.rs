//! Why a request about a template is refused, in the words of Azure VM Image Builder where they are known.
//!
//! A code and a text each, and the list of all that is wrong; which status code goes with it is known to `http` alone.

use std::fmt;

use kiln_model::problem::Code;
use kiln_model::run::RunState;
use kiln_model::{Problem, Problems};

use crate::shelves::ShelvesError;
use crate::store::{ProvisioningState, StoreError, TemplateId};

/// Where AIB sends people whose template is wrong; with its own blanks in [`bad_value`].
const REFERENCE: &str = "http://aka.ms/azvmimagebuildertmplref";

/// The text for a PUT over an existing template.
pub(super) const NO_UPDATE: &str = "Update/Upgrade of image templates is currently not supported";

/// A request about a template that is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The body is not JSON, or no object.
    #[error("The request content was invalid and could not be deserialized: '{0}'.")]
    Malformed(Problems),
    /// At least one of them is an error.
    #[error("{}", first_text(.0))]
    Invalid(Problems),
    #[error("{0}")]
    Conflict(String),
    #[error(transparent)]
    NotAllowed(NotAllowed),
    #[error(
        "The Resource '{}' under resource group '{}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
        .resource, .id.resource_group
    )]
    NotFound {
        id: TemplateId,
        /// Type and name, as `Microsoft.VirtualMachineImages/imageTemplates/t`.
        resource: String,
    },
    #[error("the catalog or the library cannot be read")]
    Shelves(#[from] ShelvesError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The service is busy with that template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NotAllowed {
    /// An action of the operations list, such as `Microsoft.VirtualMachineImages/imageTemplates/delete`.
    pub operation: &'static str,
    pub provisioning: ProvisioningState,
    pub run: Option<RunState>,
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let provisioning = match self.provisioning {
            ProvisioningState::Creating => "creating",
            ProvisioningState::Updating => "updating",
            // The service's own word.
            ProvisioningState::Succeeded => "provisioned",
            ProvisioningState::Failed => "failed",
            ProvisioningState::Deleting => "deleting",
            ProvisioningState::Canceled => "canceled",
        };
        write!(f, "Operation '{}' is not allowed in provisioningState: '{provisioning}'", self.operation)?;
        match self.run {
            Some(run) => write!(f, ", runState: '{}'", format!("{run:?}").to_ascii_lowercase()),
            None => Ok(()),
        }
    }
}

/// One of several things that are wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    pub code: String,
    /// With the line and column of the body, and what to do.
    pub message: String,
    /// A JSON pointer into the body.
    pub target: Option<String>,
}

impl TemplateError {
    /// The API's code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "InvalidRequestContent",
            Self::Invalid(problems) => match problems.errors().next() {
                Some(Problem { code: Code::CustomizerNotSupported, .. }) => "CustomizerNotSupportedForImage",
                _ => "ValidationFailed",
            },
            Self::Conflict(_) => "Conflict",
            Self::NotAllowed(_) => "OperationNotAllowed",
            Self::NotFound { .. } => "ResourceNotFound",
            Self::Shelves(_) | Self::Store(_) => "InternalServerError",
        }
    }

    /// Every problem of a body, in its order; empty for other errors.
    pub fn details(&self) -> Vec<Detail> {
        match self {
            Self::Malformed(problems) | Self::Invalid(problems) => problems.errors().map(detail).collect(),
            _ => Vec::new(),
        }
    }

    /// Pointer to the first of them.
    pub fn target(&self) -> Option<String> {
        self.details().into_iter().next().and_then(|detail| detail.target)
    }

    pub(super) fn no_template(id: &TemplateId) -> Self {
        let resource = format!("{}/{}", crate::store::TEMPLATE_TYPE, id.name);
        Self::NotFound { id: id.clone(), resource }
    }

    /// One problem of the body's own making.
    pub(super) fn invalid(problem: Problem) -> Self {
        Self::Invalid(problem.into())
    }
}

fn detail(problem: &Problem) -> Detail {
    let help = problem.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default();
    Detail {
        code: format!("{:?}", problem.code),
        message: match problem.line {
            // Not of the body: the resource's name.
            0 => format!("{}{help}", problem.message),
            line => format!("line {line}, column {}: {}{help}", problem.column, problem.message),
        },
        target: (!problem.pointer.is_empty()).then(|| problem.pointer.clone()),
    }
}

/// The first error as AIB would say it.
fn first_text(problems: &Problems) -> String {
    let Some(first) = problems.errors().next() else { return "Validation failed".to_owned() };
    let message = first.message.as_str();
    match first.code {
        Code::UnknownField if message.starts_with("Unmarshalling") => format!(
            "{message}. There is an issue with the syntax with the JSON template you are submitting. Please review {REFERENCE} for details."
        ),
        Code::MissingField => format!(
            "{message}. Please review {REFERENCE} for details on fields required in the Image Builder Template."
        ),
        // The service does not get as far as to see the value.
        Code::UnknownType => bad_value(&format!(
            "Validation failed: 'ImageTemplate.properties': Field '{}' has a bad value: ''",
            field_path(&first.pointer)
        )),
        Code::CustomizerNotSupported => {
            message.strip_prefix("CustomizerNotSupportedForImage: ").unwrap_or(message).to_owned()
        }
        _ if message.contains("' has a bad value: '") => bad_value(message),
        _ if message.contains("Validation failed") => message.to_owned(),
        _ => format!("Validation failed: {message}"),
    }
}

fn bad_value(message: &str) -> String {
    format!(
        "{message}. Please review  {REFERENCE}  for details on fields requirements in the Image Builder Template."
    )
}

/// `/properties/distribute/0/type` → `distribute[0].type`.
fn field_path(pointer: &str) -> String {
    let mut path = String::new();
    for segment in pointer.split('/').skip(1).skip_while(|segment| segment.eq_ignore_ascii_case("properties"))
    {
        if segment.bytes().all(|byte| byte.is_ascii_digit()) {
            path.push_str(&format!("[{segment}]"));
        } else {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(segment);
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_model::problem::Place;

    #[test]
    fn busy_is_said_in_the_services_words() {
        let busy =
            |provisioning, run| NotAllowed { operation: super::super::DELETE, provisioning, run }.to_string();
        assert_eq!(
            busy(ProvisioningState::Succeeded, Some(RunState::Running)),
            "Operation 'Microsoft.VirtualMachineImages/imageTemplates/delete' is not allowed in provisioningState: 'provisioned', runState: 'running'"
        );
        assert_eq!(
            busy(ProvisioningState::Creating, None),
            "Operation 'Microsoft.VirtualMachineImages/imageTemplates/delete' is not allowed in provisioningState: 'creating'"
        );
    }

    #[test]
    fn the_first_error_is_in_the_services_words_and_all_are_details() {
        let at = |pointer: &str, line| Place { pointer: pointer.to_owned(), line, column: 1 };
        let text = |code, pointer: &str, message: &str| {
            TemplateError::invalid(Problem::error(code, &at(pointer, 1), message)).to_string()
        };
        for (code, pointer, message, expected) in [
            (
                Code::BadValue,
                "/properties/source/imageId",
                "Validation failed: 'ImageTemplate.properties.source': Field 'imageId' has a bad value: 'x'",
                "Validation failed: 'ImageTemplate.properties.source': Field 'imageId' has a bad value: 'x'. Please review  http://aka.ms/azvmimagebuildertmplref  for details on fields requirements in the Image Builder Template.",
            ),
            (
                Code::MissingField,
                "",
                "Validation failed: 'ImageTemplate': Missing field 'location'",
                "Validation failed: 'ImageTemplate': Missing field 'location'. Please review http://aka.ms/azvmimagebuildertmplref for details on fields required in the Image Builder Template.",
            ),
            (
                Code::UnknownType,
                "/properties/distribute/0/type",
                "…",
                "Validation failed: 'ImageTemplate.properties': Field 'distribute[0].type' has a bad value: ''. Please review  http://aka.ms/azvmimagebuildertmplref  for details on fields requirements in the Image Builder Template.",
            ),
            (
                Code::CustomizerNotSupported,
                "/properties/customize/0",
                "CustomizerNotSupportedForImage: Customizer shell is not supported on Windows images",
                "Customizer shell is not supported on Windows images",
            ),
            (
                Code::Placeholder,
                "",
                "placeholders were not filled in: <a>",
                "Validation failed: placeholders were not filled in: <a>",
            ),
        ] {
            assert_eq!(text(code, pointer, message), expected);
        }
        let several = TemplateError::Invalid(Problems::new(vec![
            Problem::error(Code::BadName, &at("/b", 9), "second").help("write it well"),
            Problem::note(Code::Advice, &at("/a", 5), "no error"),
            Problem::error(Code::CustomizerNotSupported, &at("/a", 3), "first"),
        ]));
        assert_eq!(several.code(), "CustomizerNotSupportedForImage");
        assert_eq!(several.target().as_deref(), Some("/a"));
        let details: Vec<_> = several.details().into_iter().map(|d| (d.code, d.message, d.target)).collect();
        assert_eq!(
            details,
            [
                (
                    "CustomizerNotSupported".to_owned(),
                    "line 3, column 1: first".to_owned(),
                    Some("/a".to_owned())
                ),
                (
                    "BadName".to_owned(),
                    "line 9, column 1: second; write it well".to_owned(),
                    Some("/b".to_owned())
                ),
            ]
        );
    }
}
