"""Every operation of azure-mgmt-imagebuilder, against the server that the environment names.

sdk.py TEMPLATE NAME RUNS: TEMPLATE is the body of a PUT; with RUNS=yes the template is run to its end.
What it prints is for a person who looks at a failure; that it ends with 0 is the test.
"""

import io
import json
import os
import sys

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import ClientSecretCredential
from azure.mgmt.imagebuilder import ImageBuilderClient

template_file, name, runs = sys.argv[1:]
base = os.environ["KILN_ENDPOINT"]
subscription = os.environ["AZURE_SUBSCRIPTION_ID"]
group = os.environ["AZURE_RESOURCE_GROUP"]
credential = ClientSecretCredential(
    os.environ["AZURE_TENANT_ID"],
    os.environ["AZURE_CLIENT_ID"],
    os.environ["AZURE_CLIENT_SECRET"],
    authority=os.environ["AZURE_AUTHORITY_HOST"],
    disable_instance_discovery=True,
)
client = ImageBuilderClient(credential, subscription, base_url=base, credential_scopes=[base + "/.default"])
templates = client.virtual_machine_image_templates
with open(template_file) as file:
    text = file.read()


def body():
    """A new one each time: the older client takes apart what it is given."""
    return json.loads(text)


def said(what, of):
    print(what, of if isinstance(of, (str, int, list)) else of.as_dict())


def refused(code, call):
    try:
        call()
    except HttpResponseError as error:
        print("refused as it should be:", error.status_code, error.error.code, error.message)
        assert error.error.code == code, (error.error.code, code)
        return
    raise AssertionError(f"{code} expected")


operations = [operation.name for operation in client.operations.list()]
assert len(operations) == 13, operations
assert "Microsoft.VirtualMachineImages/imageTemplates/run/action" in operations

made = templates.begin_create_or_update(group, name, body()).result()
said("created", made)
assert made.name == name
assert made.provisioning_state == "Succeeded"
refused("Conflict", lambda: templates.begin_create_or_update(group, name, body()).result())

got = templates.get(group, name)
assert got.id == made.id
assert [it.name for it in templates.list_by_resource_group(group)] == [name]
assert [it.name for it in templates.list()] == [name]

updated = templates.begin_update(group, name, {"tags": {"by": "sdk"}}).result()
said("updated", updated)
assert templates.get(group, name).tags == {"by": "sdk"}
refused(
    "ValidationFailed",
    lambda: templates.begin_update(group, name, {"properties": {"distribute": []}}).result(),
)

# As bytes: the older client's model of a trigger cannot say its kind.
kind = io.BytesIO(b'{"properties": {"kind": "SourceImage"}}')
trigger = client.triggers.begin_create_or_update(group, name, "watch", kind).result()
said("trigger", trigger)
assert [it.name for it in client.triggers.list_by_image_template(group, name)] == ["watch"]
assert client.triggers.get(group, name, "watch").name == "watch"
client.triggers.begin_delete(group, name, "watch").result()
assert list(client.triggers.list_by_image_template(group, name)) == []

if runs == "yes":
    templates.begin_run(group, name).result()
    last = templates.get(group, name).last_run_status
    said("last run", last)
    assert last.run_state == "Succeeded"
    outputs = list(templates.list_run_outputs(group, name))
    assert [it.name for it in outputs] == ["out"]
    output = templates.get_run_output(group, name, "out")
    said("output", output)
    assert output.artifact_uri.startswith(base)
else:
    running = templates.begin_run(group, name)
    refused("OperationNotAllowed", lambda: templates.begin_run(group, name).result())
    templates.begin_cancel(group, name).result()
    try:
        running.result()
        raise AssertionError("a canceled run is no success")
    except HttpResponseError as error:
        print("the run ended:", error)
    assert templates.get(group, name).last_run_status.run_state == "Canceled"

templates.begin_delete(group, name).result()
try:
    templates.get(group, name)
    raise AssertionError("it is deleted")
except ResourceNotFoundError as error:
    print("gone:", error.error.code)
templates.begin_delete(group, name).result()
