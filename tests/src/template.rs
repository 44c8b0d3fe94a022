//! Image templates as the tests write them.

use serde_json::{Value, json};

/// A template in the making: JSON all along, so that a test can say anything.
#[derive(Debug, Clone)]
pub struct Template(Value);

/// The Debian 12 base image, first generation.
pub fn debian() -> Template {
    Template::new("Debian", "debian-12", "12")
}

/// The same image as a machine of the second generation.
pub fn debian_gen2() -> Template {
    Template::new("Debian", "debian-12", "12-gen2")
}

/// The tiny guest.
pub fn tiny() -> Template {
    Template::new("Kiln", "tests", "tiny").vm_size("Standard_A0")
}

/// The lab's machine, first generation: a Linux that plays a generalized Windows.
pub fn lab() -> Template {
    Template::new("Kiln", "lab", "winrm-gen1").timeout_minutes(60)
}

/// The same machine with UEFI, Secure Boot and a TPM.
pub fn lab_gen2() -> Template {
    Template::new("Kiln", "lab", "winrm-gen2").timeout_minutes(60)
}

/// The lab's machine, first generation, with a system that is installed: it has an account and a listener of its own.
pub fn lab_installed() -> Template {
    Template::new("Kiln", "lab", "installed").timeout_minutes(60)
}

impl Template {
    pub fn new(publisher: &str, offer: &str, sku: &str) -> Self {
        Self(json!({
            "type": "Microsoft.VirtualMachineImages/imageTemplates",
            "apiVersion": "2024-02-01",
            "location": "westeurope",
            "properties": {
                "buildTimeoutInMinutes": 15,
                "vmProfile": { "vmSize": "Standard_B2s" },
                "source": {
                    "type": "PlatformImage",
                    "publisher": publisher,
                    "offer": offer,
                    "sku": sku,
                    "version": "latest",
                },
                "customize": [],
                "distribute": [{ "type": "VHD", "runOutputName": "out" }],
            },
        }))
    }

    /// One that is written already.
    pub fn of(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap())
    }

    /// Sets what a JSON pointer below `/properties` names.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0["properties"][name] = value.into();
        self
    }

    #[must_use]
    pub fn top(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0[name] = value.into();
        self
    }

    #[must_use]
    pub fn vm_size(mut self, size: &str) -> Self {
        self.0["properties"]["vmProfile"]["vmSize"] = size.into();
        self
    }

    #[must_use]
    pub fn disk_gb(mut self, gigabytes: u32) -> Self {
        self.0["properties"]["vmProfile"]["osDiskSizeGB"] = gigabytes.into();
        self
    }

    #[must_use]
    pub fn timeout_minutes(self, minutes: u32) -> Self {
        self.with("buildTimeoutInMinutes", minutes)
    }

    #[must_use]
    pub fn customizer(mut self, customizer: Value) -> Self {
        self.0["properties"]["customize"].as_array_mut().unwrap().push(customizer);
        self
    }

    /// A Shell customizer with inline commands.
    #[must_use]
    pub fn shell<'a>(self, name: &str, lines: impl IntoIterator<Item = &'a str>) -> Self {
        let lines: Vec<&str> = lines.into_iter().collect();
        self.customizer(json!({ "type": "Shell", "name": name, "inline": lines }))
    }

    /// A File customizer.
    #[must_use]
    pub fn file(self, name: &str, source: &str, destination: &str) -> Self {
        self.customizer(
            json!({ "type": "File", "name": name, "sourceUri": source, "destination": destination }),
        )
    }

    pub fn text(&self) -> String {
        serde_json::to_string_pretty(&self.0).unwrap()
    }

    /// The body of a PUT: without the envelope that a file has.
    pub fn resource(&self) -> String {
        let mut body = self.0.clone();
        let body = body.as_object_mut().unwrap();
        body.remove("type");
        body.remove("apiVersion");
        serde_json::to_string_pretty(body).unwrap()
    }
}
