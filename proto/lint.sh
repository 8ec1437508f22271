# Lints the protos with buf where node can bring it; says so where it cannot.
cd "$(dirname "$0")" || exit 1
if ! command -v npx >/dev/null 2>&1; then
  echo "buf: skipped, no node on this machine"
  exit 0
fi
npx --yes --loglevel=error @bufbuild/buf@1.75.0 lint && npx --yes --loglevel=error @bufbuild/buf@1.75.0 format --diff --exit-code
