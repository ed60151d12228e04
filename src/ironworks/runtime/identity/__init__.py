"""Who calls: signed tokens of services and of users, and the one place that verifies both.

Files below the data directory:
- `identity/<service>.json`: the service's private key (JWK, ES256), mode 0600.
- `run/trust/services.json`: `{service: public JWK}`; what callees verify service tokens with.
- `run/trust/users.json`: JWKS of gatewayd's issuer; what everyone verifies user tokens with.

A service token lives one minute, names its caller (`iss`), its callee (`aud`) and, when the caller
acts for a tenant, that tenant. A key that is bound to a host stands in the trust as
`billaged@hst_…`; its tokens name the host too, and no other key's may. A user token lives ten
minutes. Both are ES256 JWTs (RFC 7519).
"""

from ironworks.runtime.identity.caller import Caller as Caller
from ironworks.runtime.identity.caller import current_caller as current_caller
from ironworks.runtime.identity.caller import current_request_id as current_request_id
from ironworks.runtime.identity.caller import current_tenant_id as current_tenant_id
from ironworks.runtime.identity.keys import SERVICES as SERVICES
from ironworks.runtime.identity.keys import ServiceName as ServiceName
from ironworks.runtime.identity.keys import ensure_host_key as ensure_host_key
from ironworks.runtime.identity.keys import ensure_service_keys as ensure_service_keys
from ironworks.runtime.identity.tokens import ServiceSigner as ServiceSigner
from ironworks.runtime.identity.tokens import Verifier as Verifier
