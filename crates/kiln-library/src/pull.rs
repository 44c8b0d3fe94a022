use kiln_host::wait::Control;
use kiln_model::catalog::CatalogEntry;

use crate::{FetchSettings, ImageError, ImageProgress, Imported, Library};

impl Library {
    pub async fn pull(
        &self,
        entry: &CatalogEntry,
        settings: &FetchSettings,
        progress: &(dyn Fn(ImageProgress) + Send + Sync),
        control: &Control,
    ) -> Result<Imported, ImageError> {
        let _ = (entry, settings, progress, control);
        todo!()
    }
}
