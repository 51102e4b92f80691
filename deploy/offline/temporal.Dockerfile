# Stands in for temporalio/server and temporalio/admin-tools: their programs, built from the same modules.
FROM kedge-base:bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates netcat-openbsd \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home temporal
COPY temporal-server temporal-sql-tool temporal /usr/local/bin/
WORKDIR /etc/temporal
USER temporal
ENTRYPOINT ["temporal-server", "start"]
