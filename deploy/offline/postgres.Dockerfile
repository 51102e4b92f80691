# Stands in for postgres:16: Debian's PostgreSQL 15, told the same by the same variables.
FROM kedge-base:bookworm
RUN mkdir -p /etc/postgresql-common \
 && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data
ENV PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/var/lib/postgresql/data LANG=C.UTF-8
COPY postgres-begin /
USER postgres
VOLUME /var/lib/postgresql/data
# The fast shutdown: it waits for no client.
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/sh", "/postgres-begin"]
