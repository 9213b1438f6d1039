-- What the command line of wrk cannot say: a method, a body, several paths;
-- and the results as one line of JSON instead of rounded text.
-- Settings come from the environment, see wrk.py.

wrk.method = os.getenv("BENCHMARK_METHOD")

local body_bytes = tonumber(os.getenv("BENCHMARK_BODY_BYTES"))
if body_bytes > 0 then
   wrk.body = string.rep("x", body_bytes)
   wrk.headers["Content-Type"] = "application/octet-stream"
end

local paths = {}
for path in string.gmatch(os.getenv("BENCHMARK_PATHS"), "%S+") do
   paths[#paths + 1] = path
end

-- Defined only when needed: without it wrk builds its request once.
if #paths > 1 then
   local turn = 0
   request = function()
      turn = turn % #paths + 1
      return wrk.format(nil, paths[turn])
   end
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, ' ..
      '"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
