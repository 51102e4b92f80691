# Stands in for python:3.12-slim-bookworm: Debian's Python 3.11, by the names that the official image has.
FROM kedge-base:bookworm
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates python3 python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/* /usr/lib/python3.11/EXTERNALLY-MANAGED \
 && ln -s python3 /usr/bin/python
# Of the machine that builds this: what it trusts, pip trusts too.
COPY ca-certificates.crt /etc/ssl/certs/
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
