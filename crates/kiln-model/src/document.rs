//! A template's text, read into one tree with places.

use crate::Sha256;
use crate::problem::Problems;

/// Longer template files are refused. A caller need not read more than one byte beyond it.
pub const MAX_TEMPLATE_BYTES: usize = 4 << 20;

/// A template file, parsed but not checked.
#[derive(Debug, Clone)]
pub struct Document {
    /// Digest of the whole text.
    pub sha256: Sha256,
}

impl Document {
    /// Reads JSON, JSON with comments and trailing commas, or YAML, by its content.
    /// `file_name_hint` names the template where its text does not.
    ///
    /// # Errors
    /// Not text, no JSON and no YAML, too large, too deep, repeated keys; a deployment
    /// template with expressions, without an image template, or with placeholders left.
    pub fn parse(bytes: &[u8], file_name_hint: &str) -> Result<Document, Problems> {
        let _ = (bytes, file_name_hint);
        todo!()
    }
}
