"""The Python SDK: everything that a platform's public API does, with types.

    from ironworks.sdk import Ironworks

    with Ironworks() as platform:
        accepted = platform.deployments.create("docker.io/library/nginx", port=80)
        result = platform.deployments.wait(accepted.job_id)
        print(result.endpoint)

`Ironworks` is the synchronous face of `AsyncIronworks`: one core, run on an event loop of its own
(`ironworks.sdk.sync` is generated from it). Answers are the messages of the API as
`ironworks.gen` has them. Where the platform is, and with which key, is found as
`ironworks.sdk.configuration` says.
"""

from ironworks.sdk.client import AsyncIronworks as AsyncIronworks
from ironworks.sdk.client import EndpointResponse as EndpointResponse
from ironworks.sdk.configuration import Configuration as Configuration
from ironworks.sdk.configuration import discover as discover
from ironworks.sdk.deployments import DeployResult as DeployResult
from ironworks.sdk.resource import Page as Page
from ironworks.sdk.sync import Ironworks as Ironworks
