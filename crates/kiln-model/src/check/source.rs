//! `properties.source`: where the base image comes from.

use super::object::{Got, Object, discriminator};
use super::report::Report;
use super::schema;
use super::values::{is_gallery_version, is_image_version, resource_id, resource_id_form};
use crate::api::ApiVersion;
use crate::catalog::{Catalog, PlatformName};
use crate::problem::Code;
use crate::template::{Placed, PurchasePlan, TemplateSource};

pub(super) const MANAGED_IMAGE: &[&str] = &["Microsoft.Compute", "images"];
const GALLERY_VERSION: &[&str] = &["Microsoft.Compute", "galleries", "images", "versions"];

pub(super) fn source(properties: &Object<'_>, report: &mut Report<'_>) -> Option<Placed<TemplateSource>> {
    let Some(at) = properties.get("source") else {
        report.missing(&properties.cursor, "source");
        return None;
    };
    let value = match discriminator(at, schema::SOURCES, report)? {
        "PlatformImage" => {
            let object = Object::open(at, schema::PLATFORM_IMAGE, report)?;
            platform_image(&object, report)?
        }
        "ManagedImage" => {
            let object = Object::open(at, schema::MANAGED_IMAGE_SOURCE, report)?;
            TemplateSource::ManagedImage { image_id: image_id(&object, report)? }
        }
        "SharedImageVersion" => {
            let object = Object::open(at, schema::SHARED_IMAGE_SOURCE, report)?;
            TemplateSource::SharedImageVersion { image_version_id: image_version_id(&object, report)? }
        }
        _ => {
            // ISO: the previews of 2018 and 2019 had it, and no service takes it any more.
            report.bad_value(
                &object_type(at),
                "ISO",
                "the ISO source was removed from AIB in 2020; start from an installed image",
            );
            return None;
        }
    };
    Some(Placed { value, place: report.place(at) })
}

fn object_type<'a>(at: &crate::tree::Cursor<'a>) -> crate::tree::Cursor<'a> {
    at.node
        .members()
        .iter()
        .find(|member| member.key.eq_ignore_ascii_case("type"))
        .map_or_else(|| at.clone(), |member| at.member(member))
}

fn platform_image(object: &Object<'_>, report: &mut Report<'_>) -> Option<TemplateSource> {
    let publisher = object.required("publisher", report);
    let offer = object.required("offer", report);
    let sku = object.required("sku", report);
    let version = object.required("version", report).and_then(|(text, at)| {
        if text.eq_ignore_ascii_case("latest") {
            Some("latest".to_owned())
        } else if is_image_version(text) {
            Some(text.to_owned())
        } else {
            report.bad_value(
                &at,
                text,
                "'latest', or numbers with dots between, for example 18.04.202401161",
            );
            None
        }
    });
    let plan = match object.object("planInfo", schema::PLAN_INFO, report) {
        Got::Absent => Some(None),
        Got::Bad => None,
        Got::Is(plan) => {
            let name = plan.required("planName", report);
            let product = plan.required("planProduct", report);
            let publisher = plan.required("planPublisher", report);
            report.no_local_meaning(&plan.cursor, "a purchase plan buys nothing here");
            (|| {
                Some(Some(PurchasePlan {
                    name: name?.0.to_owned(),
                    product: product?.0.to_owned(),
                    publisher: publisher?.0.to_owned(),
                }))
            })()
        }
    };
    let name = PlatformName {
        publisher: publisher?.0.to_owned(),
        offer: offer?.0.to_owned(),
        sku: sku?.0.to_owned(),
    };
    Some(TemplateSource::Platform { name, version: version?, plan: plan? })
}

/// A managed image's id, of a source or of a target.
pub(super) fn image_id(object: &Object<'_>, report: &mut Report<'_>) -> Option<String> {
    let (text, at) = object.required("imageId", report)?;
    if resource_id(text, MANAGED_IMAGE).is_some() {
        return Some(text.to_owned());
    }
    report.bad_value(&at, text, format!("the id of a managed image is {}", resource_id_form(MANAGED_IMAGE)));
    None
}

fn image_version_id(object: &Object<'_>, report: &mut Report<'_>) -> Option<String> {
    let (text, at) = object.required("imageVersionId", report)?;
    let version = resource_id(text, GALLERY_VERSION).and_then(|names| names.last().copied());
    let help = match version {
        Some(version) if is_gallery_version(version) => return Some(text.to_owned()),
        Some(version) if version.eq_ignore_ascii_case("latest") => {
            if report.version >= ApiVersion::V2022_07_01 {
                return Some(text.to_owned());
            }
            "'latest' is taken here since api-version 2022-07-01; name a version".to_owned()
        }
        Some(_) => "a gallery version is three numbers, for example 1.2.3".to_owned(),
        None => format!("the id of a gallery image version is {}", resource_id_form(GALLERY_VERSION)),
    };
    report.bad_value(&at, text, help);
    None
}

/// A Marketplace name that no image here answers to: the template is right, the shelf is short.
pub(super) fn in_catalog(
    source: &Placed<TemplateSource>,
    properties: &Object<'_>,
    catalog: &Catalog,
    report: &mut Report<'_>,
) {
    let TemplateSource::Platform { name, .. } = &source.value else { return };
    if catalog.find(name).is_some() {
        return;
    }
    let Some(at) = properties.get("source") else { return };
    let nearest = catalog.nearest(name);
    let help = if nearest.is_empty() {
        "import an image for it: `kiln images import`".to_owned()
    } else {
        let names: Vec<String> = nearest.iter().map(ToString::to_string).collect();
        format!("known here, and similar: {}; or import one: `kiln images import`", names.join(", "))
    };
    report.warning(at, Code::UnknownImage, format!("no image is known here for {name}")).help = Some(help);
}
